// The few types that everything shares.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

// For what kernels include: an out-of-line copy, compiled for one instruction set, must never serve another.
#define VLLM_ALWAYS_INLINE inline __attribute__((always_inline))

namespace vllm {

// Outputs of a linear layer that lie side by side in a packed weight: two vectors of 16 lanes.
inline constexpr int kTile = 32;
inline constexpr int kLanes = 16;
// Weights that share a scale in the group formats.
inline constexpr int kGroup = 32;
// Groups of kQ4K that share the float factors of their scales and minima.
inline constexpr int kSuperGroups = 8;
// Weights that share a scale in kF8Block.
inline constexpr int kF8Group = 128;
// Most rows and columns of anything, and the longest sequence: the kernels count in int.
inline constexpr int kMaxExtent = 1 << 24;

// How a packed weight lies in memory; docs/cpu_core.md draws each.
enum class Format : uint8_t { kF32, kBf16, kInt8, kInt8Group, kQ4, kQ4Min, kQ4K, kF8, kF8Block };

// What a linear layer's input is converted to, row by row, before it meets the weights.
enum class InputForm : uint8_t { kF32, kBf16, kInt8 };

// What keys and values are kept as: rounded numbers, or 8-bit integers with a scale for each token and head.
enum class KvType : uint8_t { kF32, kBf16, kF8, kInt8 };

struct Range {
  int begin;
  int end;
};

VLLM_ALWAYS_INLINE constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
VLLM_ALWAYS_INLINE constexpr int round_up(int a, int b) { return ceil_div(a, b) * b; }
VLLM_ALWAYS_INLINE constexpr size_t align_up(size_t a, size_t b) { return (a + b - 1) / b * b; }

// a * b * ..., the greatest number where it would be more.
constexpr size_t saturating_product(std::initializer_list<size_t> factors) {
  size_t product = 1;
  for (const size_t factor : factors)
    if (__builtin_mul_overflow(product, factor, &product)) return SIZE_MAX;
  return product;
}

// The `part`-th of `parts` nearly equal pieces of 0..count, cut at multiples of `grain`.
VLLM_ALWAYS_INLINE constexpr Range split(int count, int part, int parts, int grain = 1) {
  const int64_t units = ceil_div(count, grain);
  const int begin = static_cast<int>(units * part / parts) * grain;
  const int end = static_cast<int>(units * (part + 1) / parts) * grain;
  return {begin < count ? begin : count, end < count ? end : count};
}

}  // namespace vllm
