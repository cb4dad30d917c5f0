// Linear layers with 8- and 4-bit weights and 8-bit inputs: within a group of 32 k the dot product is in integers,
// exact; groups are scaled and added up in float, in order.
//
// Weights are stored unsigned, counted from `zero` (128 for 8 bits). With x signed,
//   sum (w - zero) * x = sum w * x - zero * sum x,
// so accumulators simply start at -zero * (the sum of x over the group), which ConvertedRows has.
#pragma once

#include "kernels/linear/dot_block.h"
#include "kernels/linear/finish.h"

namespace vllm::VLLM_ISA {

inline constexpr int kIntRows = kRegisters == 32 ? 8 : 2;
// The first rows to meet a tile fetch what lies this far ahead: scales and codes are too short runs for the hardware to
// see that, all in all, memory is read in order.
inline constexpr ptrdiff_t kPrefetchBytes = 8192;

// 8-bit weights: a group is bytes [8][32 outputs][4].
struct Int8Codes {
  static constexpr int kGroupBytes = kGroup * kTile;
  template <int M>
  VLLM_INLINE void dot(const uint8_t* w, const int8_t* x, ptrdiff_t stride, i32x16 (&dots)[M][2]) {
    VLLM_UNROLL for (int s = 0; s < kGroup / 4; ++s) {
      const bytes w0 = load_bytes(w + s * 128), w1 = load_bytes(w + s * 128 + 64);
      VLLM_UNROLL for (int m = 0; m < M; ++m) {
        const bytes row = broadcast_bytes(x + m * stride + 4 * s);
        dots[m][0] = dot_int8(dots[m][0], w0, row);
        dots[m][1] = dot_int8(dots[m][1], w1, row);
      }
    }
  }
};

// 4-bit weights: a group is bytes [4][32 outputs][4]; the low nibbles are 4 k, the high ones the next 4.
struct Int4Codes {
  static constexpr int kGroupBytes = kGroup * kTile / 2;
  template <int M>
  VLLM_INLINE void dot(const uint8_t* w, const int8_t* x, ptrdiff_t stride, i32x16 (&dots)[M][2]) {
    VLLM_UNROLL for (int s = 0; s < kGroup / 8; ++s) {
      const bytes w0 = load_bytes(w + s * 128), w1 = load_bytes(w + s * 128 + 64);
      const bytes low0 = low_nibbles(w0), low1 = low_nibbles(w1), high0 = high_nibbles(w0), high1 = high_nibbles(w1);
      VLLM_UNROLL for (int m = 0; m < M; ++m) {
        const bytes even = broadcast_bytes(x + m * stride + 8 * s), odd = broadcast_bytes(x + m * stride + 8 * s + 4);
        dots[m][0] = dot_int4(dot_int4(dots[m][0], low0, even), high0, odd);
        dots[m][1] = dot_int4(dot_int4(dots[m][1], low1, even), high1, odd);
      }
    }
  }
};

// Scales (and minima) of a tile's groups, by how the tile begins. header: bytes before the codes.

// float scale[32], one an output.
struct OutputScales {
  static constexpr bool kByGroup = false, kMinima = false;
  VLLM_INLINE ptrdiff_t header(int) { return kTile * sizeof(float); }
};

// float16 [groups][32].
struct GroupScales {
  static constexpr bool kByGroup = true, kMinima = false;
  VLLM_INLINE ptrdiff_t header(int groups) { return ptrdiff_t{groups} * kTile * 2; }
  VLLM_INLINE f32x16 scale(const uint8_t* tile, int, int g, int n) {
    return load_f16(reinterpret_cast<const uint16_t*>(tile) + g * kTile + n * kLanes);
  }
};

// The same, then float16 [groups][32] of minima.
struct GroupMinima : GroupScales {
  static constexpr bool kMinima = true;
  VLLM_INLINE ptrdiff_t header(int groups) { return ptrdiff_t{groups} * kTile * 4; }
  VLLM_INLINE f32x16 minimum(const uint8_t* tile, int groups, int g, int n) {
    return GroupScales::scale(tile, groups, groups + g, n);
  }
};

// float16 [groups / 8][32] of factors of scales, and of minima; then bytes [groups][32] of scales, and of minima.
struct SuperMinima {
  static constexpr bool kByGroup = true, kMinima = true;
  VLLM_INLINE int supers(int groups) { return ceil_div(groups, kSuperGroups); }
  VLLM_INLINE ptrdiff_t header(int groups) {
    return ptrdiff_t{supers(groups)} * kTile * 4 + ptrdiff_t{groups} * kTile * 2;
  }
  VLLM_INLINE f32x16 product(const uint8_t* tile, int groups, int super, int g, int n) {
    const auto* factors = reinterpret_cast<const uint16_t*>(tile);
    const uint8_t* steps = tile + ptrdiff_t{supers(groups)} * kTile * 4;
    return mul(load_f16(factors + super * kTile + n * kLanes), load_u8(steps + g * kTile + n * kLanes));
  }
  VLLM_INLINE f32x16 scale(const uint8_t* tile, int groups, int g, int n) {
    return product(tile, groups, g / kSuperGroups, g, n);
  }
  VLLM_INLINE f32x16 minimum(const uint8_t* tile, int groups, int g, int n) {
    return product(tile, groups, supers(groups) + g / kSuperGroups, groups + g, n);
  }
};

template <class Codes, class Scales>
VLLM_INLINE void linear_codes(const LinearArgs& args, int begin, int end) {
  const int groups = ceil_div(args.weight.num_in, kGroup);
  const ptrdiff_t header = Scales::header(groups);
  const ptrdiff_t stride = args.x.stride, groups_stride = args.x.groups_stride;
  for_tiles<kIntRows>(args, begin, end, [&](auto count, int tile, int first, auto& acc) {
    constexpr int kM = decltype(count)::value;
    const uint8_t* packed = args.weight.data + static_cast<size_t>(tile) * args.weight.tile_bytes;
    const uint8_t* codes = packed + header;
    const int8_t* x = static_cast<const int8_t*>(args.x.values) + first * stride;
    const ptrdiff_t first_group = first * groups_stride;
    const int32_t* starts = args.x.start + first_group;
    const float* x_scales = args.x.scale + first_group;
    const float* x_sums = args.x.sum + first_group;
    VLLM_UNROLL for (int m = 0; m < kM; ++m) acc[m][0] = acc[m][1] = zeros();
    const ptrdiff_t group_bytes = Codes::kGroupBytes + header / groups;
    const uint8_t* ahead = packed + (first == 0 ? kPrefetchBytes : 0);
    for (int g = 0; g < groups; ++g, ahead += group_bytes) {
      if constexpr (Scales::kByGroup)
        for (ptrdiff_t line = 0; line < group_bytes; line += 64) prefetch(ahead + line);
      i32x16 dots[kM][2];
      VLLM_UNROLL for (int m = 0; m < kM; ++m) dots[m][0] = dots[m][1] = broadcast(starts[m * groups_stride + g]);
      Codes::dot(codes + static_cast<ptrdiff_t>(g) * Codes::kGroupBytes, x + g * kGroup, stride, dots);
      VLLM_UNROLL for (int n = 0; n < 2; ++n) {
        f32x16 scale, minimum;
        if constexpr (Scales::kByGroup) scale = Scales::scale(packed, groups, g, n);
        if constexpr (Scales::kMinima) minimum = Scales::minimum(packed, groups, g, n);
        VLLM_UNROLL for (int m = 0; m < kM; ++m) {
          const f32x16 dot = to_float(dots[m][n]), x_scale = broadcast(x_scales[m * groups_stride + g]);
          if constexpr (Scales::kByGroup)
            acc[m][n] = fma(mul(dot, x_scale), scale, acc[m][n]);
          else
            acc[m][n] = fma(dot, x_scale, acc[m][n]);
          if constexpr (Scales::kMinima) acc[m][n] = fma(broadcast(x_sums[m * groups_stride + g]), minimum, acc[m][n]);
        }
      }
    }
    if constexpr (!Scales::kByGroup) VLLM_UNROLL for (int n = 0; n < 2; ++n) {
        const f32x16 scale = load(reinterpret_cast<const float*>(packed) + n * kLanes);
        VLLM_UNROLL for (int m = 0; m < kM; ++m) acc[m][n] = mul(acc[m][n], scale);
      }
  });
}

void linear_int8(LinearArgs& args, int begin, int end) { linear_codes<Int8Codes, OutputScales>(args, begin, end); }
void linear_int8_group(LinearArgs& args, int begin, int end) { linear_codes<Int8Codes, GroupScales>(args, begin, end); }
void linear_q4(LinearArgs& args, int begin, int end) { linear_codes<Int4Codes, GroupScales>(args, begin, end); }
void linear_q4_min(LinearArgs& args, int begin, int end) { linear_codes<Int4Codes, GroupMinima>(args, begin, end); }
void linear_q4_k(LinearArgs& args, int begin, int end) { linear_codes<Int4Codes, SuperMinima>(args, begin, end); }

}  // namespace vllm::VLLM_ISA
