// Memory that lives as long as a model: files mapped read-only, and zeroed pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <string>

namespace vllm {

// More was asked for than the process can address, or is allowed to.
struct OutOfAddresses : std::bad_alloc {
  const char* what() const noexcept override;
};

// A mapping, unmapped when destroyed. Movable.
class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept { swap(other); }
  Mapping& operator=(Mapping&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Mapping();

  uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

  // A whole file, shared with every process that maps it; in huge pages where the page cache holds it in such (reading
  // it is up to twice as fast then). Throws std::runtime_error.
  static Mapping of_file(const std::string& path);
  // Zeroed pages, huge ones where the system gives them; touched when first used. Throws OutOfAddresses.
  static Mapping zeroed(size_t size);
  // Addresses that begin at a huge page, with nothing there: what touches them dies. Throws OutOfAddresses.
  static Mapping reserve(size_t size);

 private:
  void swap(Mapping& other) noexcept;

  uint8_t* data_ = nullptr;
  size_t size_ = 0;
  void* reserved_ = nullptr;
  size_t reserved_size_ = 0;
};

}  // namespace vllm
