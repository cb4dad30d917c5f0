// Linear layers with 8- and 4-bit weights and 8-bit inputs: within a group of 32 k the dot product is in integers,
// exact; groups are scaled and added up in float, in order.
//
// Weights are stored unsigned, counted from `zero` (128 for 8 bits). With x signed,
//   sum (w - zero) * x = sum w * x - zero * sum x,
// so accumulators simply start at -zero * (the sum of x over the group), which ConvertedRows has. With minima, zero is 0.
#pragma once

#include "kernels/linear/dot_block.h"
#include "kernels/linear/finish.h"

namespace vllm::VLLM_ISA {

// The first rows to meet a tile fetch what lies this far ahead: scales and codes are too short runs for the hardware to
// see that, all in all, memory is read in order.
inline constexpr ptrdiff_t kPrefetchBytes = 8192;

// Both: dots[m][n] = sum over the group of codes * x[m], plus starts[m]. w: the group's codes, from the first of N vectors.

// 8-bit weights: a group is bytes [8][32 outputs][4].
struct Int8Codes {
  static constexpr int kGroupBytes = kGroup * kTile;
  static constexpr int kRows = kInt8Rows;
  template <int M, int N>
  VLLM_INLINE void dot(const uint8_t* w, const int8_t* x, ptrdiff_t stride, const int32_t (&starts)[M],
                       i32x16 (&dots)[M][N]) {
    VLLM_UNROLL for (int m = 0; m < M; ++m) VLLM_UNROLL for (int n = 0; n < N; ++n) dots[m][n] = begin_int8(starts[m]);
    VLLM_UNROLL for (int s = 0; s < kGroup / 4; ++s) {
      codes column[N];
      VLLM_UNROLL for (int n = 0; n < N; ++n) column[n] = load_codes(w + s * 128 + n * 64);
      VLLM_UNROLL for (int m = 0; m < M; ++m) {
        const bytes row = broadcast_bytes(x + m * stride + 4 * s);
        VLLM_UNROLL for (int n = 0; n < N; ++n) dots[m][n] = dot_int8(dots[m][n], column[n], row);
      }
    }
  }
};

// 4-bit weights: a group is bytes [4][32 outputs][4]; the low nibbles are 4 k, the high ones the next 4.
struct Int4Codes {
  static constexpr int kGroupBytes = kGroup * kTile / 2;
  static constexpr int kRows = kInt4Rows;
  template <int M, int N>
  VLLM_INLINE void dot(const uint8_t* w, const int8_t* x, ptrdiff_t stride, const int32_t (&starts)[M],
                       i32x16 (&dots)[M][N]) {
    nibble_sums sums[M][N];
    VLLM_UNROLL for (int m = 0; m < M; ++m) VLLM_UNROLL for (int n = 0; n < N; ++n) sums[m][n] = begin_int4(starts[m]);
    VLLM_UNROLL for (int s = 0; s < kGroup / 8; ++s) {
      bytes low[N], high[N];
      VLLM_UNROLL for (int n = 0; n < N; ++n) {
        const bytes both = load_bytes(w + s * 128 + n * 64);
        low[n] = low_nibbles(both);
        high[n] = high_nibbles(both);
      }
      VLLM_UNROLL for (int m = 0; m < M; ++m) {
        const bytes even = broadcast_bytes(x + m * stride + 8 * s), odd = broadcast_bytes(x + m * stride + 8 * s + 4);
        VLLM_UNROLL for (int n = 0; n < N; ++n)
            sums[m][n] = dot_int4(dot_int4(sums[m][n], low[n], even), high[n], odd);
      }
    }
    VLLM_UNROLL for (int m = 0; m < M; ++m) VLLM_UNROLL for (int n = 0; n < N; ++n)
        dots[m][n] = end_int4(sums[m][n], starts[m]);
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
  for_tiles<Codes::kRows>(args, begin, end, [&](auto count, int tile, int first, auto& acc) {
    constexpr int kM = decltype(count)::value;
    const uint8_t* packed = args.weight.data + static_cast<size_t>(tile) * args.weight.tile_bytes;
    const uint8_t* codes = packed + header;
    const int8_t* x = static_cast<const int8_t*>(args.x.values) + first * stride;
    const ptrdiff_t first_group = first * groups_stride;
    const int32_t* x_starts = args.x.start + first_group;
    const float* x_scales = args.x.scale + first_group;
    const float* x_sums = args.x.sum + first_group;
    VLLM_UNROLL for (int m = 0; m < kM; ++m) acc[m][0] = acc[m][1] = zeros();
    const ptrdiff_t group_bytes = Codes::kGroupBytes + header / groups;
    const uint8_t* ahead = packed + (first == 0 ? kPrefetchBytes : 0);
    for (int g = 0; g < groups; ++g, ahead += group_bytes, codes += Codes::kGroupBytes) {
      if constexpr (Scales::kByGroup)
        for (ptrdiff_t line = 0; line < group_bytes; line += 64) prefetch(ahead + line);
      int32_t starts[kM];
      VLLM_UNROLL for (int m = 0; m < kM; ++m) starts[m] = Scales::kMinima ? 0 : x_starts[m * groups_stride + g];
      VLLM_UNROLL for (int c = 0; c < 2; c += kColumns) {
        i32x16 dots[kM][kColumns];
        Codes::dot(codes + c * 64, x + g * kGroup, stride, starts, dots);
        VLLM_UNROLL for (int n = c; n < c + kColumns; ++n) {
          f32x16 scale, minimum;
          if constexpr (Scales::kByGroup) scale = Scales::scale(packed, groups, g, n);
          if constexpr (Scales::kMinima) minimum = Scales::minimum(packed, groups, g, n);
          VLLM_UNROLL for (int m = 0; m < kM; ++m) {
            const f32x16 dot = to_float(dots[m][n - c]), x_scale = broadcast(x_scales[m * groups_stride + g]);
            if constexpr (Scales::kByGroup)
              acc[m][n] = fma(mul(dot, x_scale), scale, acc[m][n]);
            else
              acc[m][n] = fma(dot, x_scale, acc[m][n]);
            if constexpr (Scales::kMinima) acc[m][n] = fma(broadcast(x_sums[m * groups_stride + g]), minimum, acc[m][n]);
          }
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
