// What happens to a finished tile: bias, then store, add to the residual stream, or SwiGLU.
#pragma once

#include "kernels/args.h"
#include "simd/vec.h"

namespace vllm::VLLM_ISA {

// `tile` is kTile sums of one row, two vectors. For kSiluMul the caller passes gate and up to finish_pair instead.
template <int M>
VLLM_INLINE void finish_tile(const LinearArgs& args, int tile, int first_row, f32x16 (&acc)[M][2]) {
  const int column = tile * kTile;
  const int valid = args.weight.num_out - column;
  VLLM_UNROLL for (int m = 0; m < M; ++m) {
    float* y = args.y + (first_row + m) * args.y_stride + column;
    VLLM_UNROLL for (int n = 0; n < 2; ++n) {
      const int lanes = valid - n * kLanes;
      if (lanes <= 0) break;
      f32x16 value = acc[m][n];
      if (args.bias) value = add(value, load(args.bias + column + n * kLanes));
      float* out = y + n * kLanes;
      if (lanes >= kLanes) {
        if (args.epilogue == Epilogue::kAccumulate) value = add(load(out), value);
        store(out, value);
      } else {
        if (args.epilogue == Epilogue::kAccumulate) value = add(load(out, lanes), value);
        store(out, value, lanes);
      }
    }
  }
}

// Runs compute(tile, rows_count, first_row, acc) for every tile and every block of rows, then finishes. Tiles are the
// outer loop, so that weights stream once; a pair of gate and up tiles is finished together.
template <int MaxRows, class Compute>
VLLM_INLINE void for_tiles(const LinearArgs& args, int begin, int end, Compute&& compute) {
  if (args.epilogue == Epilogue::kSiluMul) {
    for (int pair = begin; pair < end; ++pair)
      for_row_blocks<MaxRows>(args.rows, [&](auto count, int first) {
        constexpr int kM = decltype(count)::value;
        f32x16 gate[kM][2], up[kM][2];
        compute(count, 2 * pair, first, gate);
        compute(count, 2 * pair + 1, first, up);
        VLLM_UNROLL for (int m = 0; m < kM; ++m) VLLM_UNROLL for (int n = 0; n < 2; ++n)
            store(args.y + (first + m) * args.y_stride + pair * kTile + n * kLanes, mul(silu(gate[m][n]), up[m][n]));
      });
    return;
  }
  for (int tile = begin; tile < end; ++tile)
    for_row_blocks<MaxRows>(args.rows, [&](auto count, int first) {
      f32x16 acc[decltype(count)::value][2];
      compute(count, tile, first, acc);
      finish_tile(args, tile, first, acc);
    });
}

}  // namespace vllm::VLLM_ISA
