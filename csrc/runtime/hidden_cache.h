// One float32 row for each KV slot: what a target knew of the token there, for its draft to recall. Shared by the two.
#pragma once

#include <string>

#include "runtime/memory.h"
#include "runtime/spec.h"

namespace vllm {

class HiddenCache {
 public:
  HiddenCache(int num_slots, int width) : num_slots_(num_slots), width_(width) {
    if (num_slots < 1 || width < 1 || width > kMaxExtent)
      throw Malformed("a hidden cache needs positive numbers of slots and columns, not " + std::to_string(num_slots) +
                      " and " + std::to_string(width));
    memory_ = Mapping::zeroed(
        saturating_product({static_cast<size_t>(num_slots), static_cast<size_t>(width), sizeof(float)}));
  }

  int num_slots() const { return num_slots_; }
  int width() const { return width_; }
  size_t bytes() const { return memory_.size(); }
  float* row(int slot) const {
    return reinterpret_cast<float*>(memory_.data()) + static_cast<ptrdiff_t>(slot) * width_;
  }

 private:
  int num_slots_, width_;
  Mapping memory_;
};

}  // namespace vllm
