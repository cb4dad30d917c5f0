#include "runtime/memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <new>
#include <stdexcept>
#include <utility>

namespace vllm {

Mapping::~Mapping() {
  if (data_) munmap(data_, size_);
}

void Mapping::swap(Mapping& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
}

Mapping Mapping::of_file(const std::string& path) {
  const auto fail = [&](const char* what) {
    throw std::runtime_error(std::string("cannot ") + what + " " + path + ": " + std::strerror(errno));
  };
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) fail("open");
  struct stat info;
  const bool known = fstat(file, &info) == 0;
  const size_t size = known ? static_cast<size_t>(info.st_size) : 0;
  void* data = size ? mmap(nullptr, size, PROT_READ, MAP_SHARED, file, 0) : MAP_FAILED;
  close(file);
  if (data == MAP_FAILED) fail("map");
#ifdef MADV_POPULATE_READ
  madvise(data, size, MADV_POPULATE_READ);
#else
  madvise(data, size, MADV_WILLNEED);
#endif
  Mapping mapping;
  mapping.data_ = static_cast<uint8_t*>(data);
  mapping.size_ = size;
  return mapping;
}

Mapping Mapping::zeroed(size_t size) {
  if (size == 0) return {};
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  madvise(data, size, MADV_HUGEPAGE);
  Mapping mapping;
  mapping.data_ = static_cast<uint8_t*>(data);
  mapping.size_ = size;
  return mapping;
}

}  // namespace vllm
