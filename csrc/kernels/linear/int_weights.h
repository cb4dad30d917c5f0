// Linear layers with 8- and 4-bit weights and 8-bit inputs: integer dot products, exact, then one scaling in float.
//
// Weights are stored unsigned, counted from `zero` (128 for 8 bits). With x signed,
//   sum (w - zero) * x = sum w * x - zero * sum x,
// so accumulators simply start at -zero * (the sum of x over the same k), which ConvertedRows has by group.
#pragma once

#include "kernels/linear/dot_block.h"
#include "kernels/linear/finish.h"

namespace vllm::VLLM_ISA {

inline constexpr int kInt8Zero = 128;
inline constexpr int kIntRows = kRegisters == 32 ? 12 : 2;
inline constexpr int kGroupRows = kRegisters == 32 ? 6 : 2;

VLLM_INLINE const uint8_t* tile_of(const PackedMatrix& w, int tile) {
  return w.data + static_cast<size_t>(tile) * w.tile_bytes;
}

// Tile: float scale[32], then bytes [k / 4][32 outputs][4].
void linear_int8(LinearArgs& args, int begin, int end) {
  const int groups = ceil_div(args.weight.num_in, kGroup);
  const auto* x = static_cast<const int8_t*>(args.x.values);
  for_tiles<kIntRows>(args, begin, end, [&](auto count, int tile, int first, auto& acc) {
    constexpr int kM = decltype(count)::value;
    const uint8_t* packed = tile_of(args.weight, tile);
    const auto* scale = reinterpret_cast<const float*>(packed);
    const uint8_t* w = packed + kTile * sizeof(float);
    const int8_t* rows = x + first * args.x.stride;
    i32x16 dots[kM][2];
    for (int m = 0; m < kM; ++m) {
      int32_t total = 0;
      for (int g = 0; g < groups; ++g) total += args.x.sums[(first + m) * args.x.sums_stride + g];
      dots[m][0] = dots[m][1] = broadcast(-kInt8Zero * total);
    }
    for (int s = 0; s < groups * kGroup / 4; ++s, w += kTile * 4) {
      const bytes w0 = load_bytes(w), w1 = load_bytes(w + 64);
#pragma GCC unroll 16
      for (int m = 0; m < kM; ++m) {
        const bytes row = broadcast_bytes(rows + m * args.x.stride + 4 * s);
        dots[m][0] = dot_int8(dots[m][0], w0, row);
        dots[m][1] = dot_int8(dots[m][1], w1, row);
      }
    }
    for (int m = 0; m < kM; ++m)
      for (int n = 0; n < 2; ++n)
        acc[m][n] = mul(mul(to_float(dots[m][n]), load(scale + n * kLanes)), broadcast(args.x.scale[first + m]));
  });
}

// Planes of a group format's tile, in order: scales f16 [k / 32][32], minima f16 (kQ4Min only), data.
struct GroupPlanes {
  const uint16_t* scales;
  const uint16_t* minima;
  const uint8_t* data;
};

VLLM_INLINE GroupPlanes planes_of(const PackedMatrix& w, int tile, int groups, bool minima) {
  const auto* scales = reinterpret_cast<const uint16_t*>(tile_of(w, tile));
  const ptrdiff_t plane = static_cast<ptrdiff_t>(groups) * kTile;
  const uint16_t* after = scales + plane;
  return {scales, minima ? after : nullptr, reinterpret_cast<const uint8_t*>(minima ? after + plane : after)};
}

// One group of 32 k of 8-bit weights: bytes [8][32 outputs][4].
struct Int8Group {
  static constexpr int kBytes = kGroup * kTile;
  static constexpr int kZero = kInt8Zero;
  static constexpr bool kMinima = false;
  template <int M>
  VLLM_INLINE void dot(const uint8_t* w, const int8_t* x, ptrdiff_t stride, i32x16 (&dots)[M][2]) {
#pragma GCC unroll 8
    for (int s = 0; s < kGroup / 4; ++s) {
      const bytes w0 = load_bytes(w + s * 128), w1 = load_bytes(w + s * 128 + 64);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const bytes row = broadcast_bytes(x + m * stride + 4 * s);
        dots[m][0] = dot_int8(dots[m][0], w0, row);
        dots[m][1] = dot_int8(dots[m][1], w1, row);
      }
    }
  }
};

// One group of 32 k of 4-bit weights: bytes [4][32 outputs][4]; the low nibbles are 4 k, the high ones the next 4.
// Values count from 8, or from their group's minimum.
template <bool Minima>
struct Int4Group {
  static constexpr int kBytes = kGroup * kTile / 2;
  static constexpr int kZero = Minima ? 0 : 8;
  static constexpr bool kMinima = Minima;
  template <int M>
  VLLM_INLINE void dot(const uint8_t* w, const int8_t* x, ptrdiff_t stride, i32x16 (&dots)[M][2]) {
#pragma GCC unroll 4
    for (int s = 0; s < kGroup / 8; ++s) {
      const bytes w0 = load_bytes(w + s * 128), w1 = load_bytes(w + s * 128 + 64);
      const bytes low0 = low_nibbles(w0), low1 = low_nibbles(w1), high0 = high_nibbles(w0), high1 = high_nibbles(w1);
#pragma GCC unroll 16
      for (int m = 0; m < M; ++m) {
        const bytes even = broadcast_bytes(x + m * stride + 8 * s), odd = broadcast_bytes(x + m * stride + 8 * s + 4);
        dots[m][0] = dot_int4(dot_int4(dots[m][0], low0, even), high0, odd);
        dots[m][1] = dot_int4(dot_int4(dots[m][1], low1, even), high1, odd);
      }
    }
  }
};

template <class Group>
VLLM_INLINE void linear_group(const LinearArgs& args, int begin, int end) {
  const int groups = ceil_div(args.weight.num_in, kGroup);
  const auto* x = static_cast<const int8_t*>(args.x.values);
  const ptrdiff_t stride = args.x.stride, sums_stride = args.x.sums_stride;
  for_tiles<kGroupRows>(args, begin, end, [&](auto count, int tile, int first, auto& acc) {
    constexpr int kM = decltype(count)::value;
    const GroupPlanes planes = planes_of(args.weight, tile, groups, Group::kMinima);
    const int8_t* rows = x + first * stride;
    const int32_t* sums = args.x.sums + first * sums_stride;
    for (int m = 0; m < kM; ++m) acc[m][0] = acc[m][1] = zeros();
    for (int g = 0; g < groups; ++g) {
      i32x16 dots[kM][2];
#pragma GCC unroll 16
      for (int m = 0; m < kM; ++m) dots[m][0] = dots[m][1] = broadcast(-Group::kZero * sums[m * sums_stride + g]);
      Group::dot(planes.data + static_cast<ptrdiff_t>(g) * Group::kBytes, rows + g * kGroup, stride, dots);
#pragma GCC unroll 2
      for (int n = 0; n < 2; ++n) {
        const f32x16 scale = load_f16(planes.scales + g * kTile + n * kLanes);
#pragma GCC unroll 16
        for (int m = 0; m < kM; ++m) acc[m][n] = fma(to_float(dots[m][n]), scale, acc[m][n]);
        if constexpr (Group::kMinima) {
          const f32x16 minimum = load_f16(planes.minima + g * kTile + n * kLanes);
#pragma GCC unroll 16
          for (int m = 0; m < kM; ++m)
            acc[m][n] = fma(broadcast(static_cast<float>(sums[m * sums_stride + g])), minimum, acc[m][n]);
        }
      }
    }
    for (int m = 0; m < kM; ++m)
      for (int n = 0; n < 2; ++n) acc[m][n] = mul(acc[m][n], broadcast(args.x.scale[first + m]));
  });
}

void linear_int8_group(LinearArgs& args, int begin, int end) { linear_group<Int8Group>(args, begin, end); }
void linear_q4(LinearArgs& args, int begin, int end) { linear_group<Int4Group<false>>(args, begin, end); }
void linear_q4_min(LinearArgs& args, int begin, int end) { linear_group<Int4Group<true>>(args, begin, end); }

}  // namespace vllm::VLLM_ISA
