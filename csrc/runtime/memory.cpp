#include "runtime/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "base/types.h"

namespace vllm {

namespace {

constexpr size_t kHugePage = size_t{2} << 20;
[[maybe_unused]] constexpr size_t kPage = 4096;
// More than the address space of a process.
constexpr size_t kMostBytes = size_t{1} << 48;

// Has AddressSanitizer report what touches bytes from `end` on, to the end of that page; or no longer.
void guard([[maybe_unused]] uint8_t* end, [[maybe_unused]] bool guarded) {
#ifdef __SANITIZE_ADDRESS__
  const auto size = align_up(reinterpret_cast<size_t>(end), kPage) - reinterpret_cast<size_t>(end);
  if (guarded)
    __asan_poison_memory_region(end, size);
  else
    __asan_unpoison_memory_region(end, size);
#endif
}

}  // namespace

const char* OutOfAddresses::what() const noexcept { return "there are not that many addresses to be had"; }

Mapping::~Mapping() {
  if (!reserved_) return;
  guard(data_ + size_, false);
  munmap(reserved_, reserved_size_);
}

void Mapping::swap(Mapping& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(reserved_, other.reserved_);
  std::swap(reserved_size_, other.reserved_size_);
}

Mapping Mapping::reserve(size_t size) {
  if (size > kMostBytes) throw OutOfAddresses();
  const size_t reserved_size = size + kHugePage;
  void* reserved = mmap(nullptr, reserved_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) throw OutOfAddresses();
  Mapping mapping;
  mapping.reserved_ = reserved;
  mapping.reserved_size_ = reserved_size;
  mapping.data_ = reinterpret_cast<uint8_t*>(align_up(reinterpret_cast<size_t>(reserved), kHugePage));
  mapping.size_ = size;
  return mapping;
}

Mapping Mapping::of_file(const std::string& path) {
  const auto fail = [&](const char* what) {
    throw std::runtime_error(std::string("cannot ") + what + " " + path + ": " + std::strerror(errno));
  };
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail("open");
  struct stat info;
  const size_t size = fstat(file, &info) == 0 ? static_cast<size_t>(info.st_size) : 0;
  Mapping mapping = reserve(size);
  const void* data = size ? mmap(mapping.data_, size, PROT_READ, MAP_SHARED | MAP_FIXED, file, 0) : MAP_FAILED;
  close(file);
  if (data == MAP_FAILED) fail("map");
  guard(mapping.data_ + size, true);
  madvise(mapping.data_, size, MADV_HUGEPAGE);
#ifdef MADV_POPULATE_READ
  madvise(mapping.data_, size, MADV_POPULATE_READ);
#else
  madvise(mapping.data_, size, MADV_WILLNEED);
#endif
  return mapping;
}

Mapping Mapping::zeroed(size_t size) {
  if (size == 0) return {};
  Mapping mapping = reserve(size);
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
  if (mmap(mapping.data_, size, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) throw OutOfAddresses();
  guard(mapping.data_ + size, true);
  madvise(mapping.data_, size, MADV_HUGEPAGE);
  return mapping;
}

}  // namespace vllm
