// Linear layers with weights in 8-bit floating point (e4m3) and float inputs: tile = scales, then [k][32 outputs] bytes.
//
// Few rows turn weights into floats in registers. Many rows share a panel of kF8Group k that is turned into floats once,
// in the first-level cache. Both add up the same products in the same order, so a row's bits do not depend on which.
#pragma once

#include "kernels/linear/byte_lanes.h"
#include "kernels/linear/dot_block.h"
#include "kernels/linear/finish.h"
#include "kernels/linear/float_weights.h"

namespace vllm::VLLM_ISA {

// Rows that share a panel; their sums are kept beside it.
inline constexpr int kPanelRows = 64;
using TileSums = float[kPanelRows][kTile];

// float scale[32], one an output.
struct F8OutputScales {
  static constexpr bool kByBlock = false;
  VLLM_INLINE ptrdiff_t header(int) { return kTile * sizeof(float); }
};
// float scale[k / kF8Group][32].
struct F8BlockScales {
  static constexpr bool kByBlock = true;
  VLLM_INLINE ptrdiff_t header(int num_in) { return ceil_div(num_in, kF8Group) * ptrdiff_t{kTile} * sizeof(float); }
};

// total += part * scale, where scale holds for the outputs of `tile` and, by block, for the k-th input.
template <class Scales, int M>
VLLM_INLINE void add_scaled(const uint8_t* tile, int k, const f32x16 (&part)[M][2], f32x16 (&total)[M][2]) {
  const auto* scales = reinterpret_cast<const float*>(tile) + (Scales::kByBlock ? k / kF8Group * kTile : 0);
  VLLM_UNROLL for (int n = 0; n < 2; ++n) {
    const f32x16 scale = mul(load(scales + n * kLanes), broadcast(F8Lanes::kFactor));
    VLLM_UNROLL for (int m = 0; m < M; ++m) total[m][n] = fma(part[m][n], scale, total[m][n]);
  }
}

template <int M>
VLLM_INLINE void clear(f32x16 (&acc)[M][2]) {
  VLLM_UNROLL for (int m = 0; m < M; ++m) acc[m][0] = acc[m][1] = zeros();
}
template <int M>
VLLM_INLINE void load_sums(const TileSums& sums, int first, f32x16 (&acc)[M][2]) {
  VLLM_UNROLL for (int m = 0; m < M; ++m) VLLM_UNROLL for (int n = 0; n < 2; ++n)
      acc[m][n] = load(sums[first + m] + n * kLanes);
}
template <int M>
VLLM_INLINE void store_sums(TileSums& sums, int first, const f32x16 (&acc)[M][2]) {
  VLLM_UNROLL for (int m = 0; m < M; ++m) VLLM_UNROLL for (int n = 0; n < 2; ++n)
      store(sums[first + m] + n * kLanes, acc[m][n]);
}

template <class Scales, int M>
VLLM_INLINE void sum_in_registers(const uint8_t* tile, int num_in, const float* x, ptrdiff_t stride, TileSums& sums) {
  const uint8_t* codes = tile + Scales::header(num_in);
  f32x16 total[M][2];
  clear(total);
  const int block = Scales::kByBlock ? kF8Group : num_in;
  for (int k = 0; k < num_in; k += block) {
    f32x16 part[M][2];
    clear(part);
    const int steps = num_in - k < block ? num_in - k : block;
    dot_bytes<F8Lanes, M, 2>(codes + ptrdiff_t{k} * kTile, kTile, kLanes, x + k, stride, steps, part);
    add_scaled<Scales>(tile, k, part, total);
  }
  store_sums(sums, 0, total);
}

template <class Scales>
VLLM_INLINE void sum_by_panels(const uint8_t* tile, int num_in, const float* x, ptrdiff_t stride, int rows,
                               TileSums& sums) {
  alignas(64) float panel[kF8Group * kTile];
  alignas(64) TileSums parts;
  const uint8_t* codes = tile + Scales::header(num_in);
  std::memset(sums, 0, sizeof(float) * kTile * static_cast<size_t>(rows));
  std::memset(parts, 0, sizeof(float) * kTile * static_cast<size_t>(rows));
  for (int k = 0; k < num_in; k += kF8Group) {
    const int steps = num_in - k < kF8Group ? num_in - k : kF8Group;
    for (int i = 0; i < steps * kTile; i += kLanes) store(panel + i, load_f8(codes + ptrdiff_t{k} * kTile + i));
    const bool scaled = Scales::kByBlock || k + steps == num_in;
    for_row_blocks<kFloatRows>(rows, [&](auto count, int first) {
      constexpr int kM = decltype(count)::value;
      f32x16 part[kM][2], total[kM][2];
      if constexpr (Scales::kByBlock)
        clear(part);
      else
        load_sums(parts, first, part);
      dot_vectors<F32Units, kM, 2>(reinterpret_cast<const uint32_t*>(panel), kTile, kLanes,
                                   reinterpret_cast<const uint32_t*>(x + first * stride + k), stride, steps, part);
      if (!scaled) return store_sums(parts, first, part);
      load_sums(sums, first, total);
      add_scaled<Scales>(tile, k, part, total);
      store_sums(sums, first, total);
    });
  }
}

// sums[r] = outputs of one tile for rows first .. first + rows - 1, rows <= kPanelRows.
template <class Scales>
VLLM_INLINE void sum_tile(const LinearArgs& args, int tile_index, int first, int rows, TileSums& sums) {
  const uint8_t* tile = args.weight.data + static_cast<size_t>(tile_index) * args.weight.tile_bytes;
  const ptrdiff_t stride = args.x.stride;
  const float* x = static_cast<const float*>(args.x.values) + first * stride;
  if (rows > kPairRows) return sum_by_panels<Scales>(tile, args.weight.num_in, x, stride, rows, sums);
  for_row_blocks<kPairRows>(rows, [&](auto count, int) {
    sum_in_registers<Scales, decltype(count)::value>(tile, args.weight.num_in, x, stride, sums);
  });
}

template <class Scales>
VLLM_INLINE void linear_f8_tiles(const LinearArgs& args, int begin, int end) {
  alignas(64) TileSums sums, ups;
  for (int item = begin; item < end; ++item)
    for (int first = 0; first < args.rows; first += kPanelRows) {
      const int rows = args.rows - first < kPanelRows ? args.rows - first : kPanelRows;
      const bool pair = args.epilogue == Epilogue::kSiluMul;
      sum_tile<Scales>(args, pair ? 2 * item : item, first, rows, sums);
      if (pair) sum_tile<Scales>(args, 2 * item + 1, first, rows, ups);
      for (int row = 0; row < rows; ++row) {
        f32x16 acc[1][2], up[1][2];
        load_sums(sums, row, acc);
        if (!pair) {
          finish_tile(args, item, first + row, acc);
          continue;
        }
        load_sums(ups, row, up);
        float* y = args.y + (first + row) * args.y_stride + item * kTile;
        VLLM_UNROLL for (int n = 0; n < 2; ++n) store(y + n * kLanes, mul(silu(acc[0][n]), up[0][n]));
      }
    }
}

void linear_f8(LinearArgs& args, int begin, int end) { linear_f8_tiles<F8OutputScales>(args, begin, end); }
void linear_f8_block(LinearArgs& args, int begin, int end) { linear_f8_tiles<F8BlockScales>(args, begin, end); }

}  // namespace vllm::VLLM_ISA
