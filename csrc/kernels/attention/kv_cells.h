// How attention meets keys and values, by what they are kept as.
//
//   Cell, kPerCell     what the cache holds, and how many positions or dimensions are in one
//   kBytes             cells become floats before they are multiplied; queries and softmax weights are floats then
//   kFactor            what a product must be multiplied by
//   kRows              most rows that meet cells at once
//   kScaled            each position brings a scale of its key and one of its value
//   dot<M, N>(...)     as dot_block: M rows of x by N vectors of 16 columns of cells, over `steps` steps of cells
#pragma once

#include "kernels/linear/byte_lanes.h"
#include "kernels/linear/dot_block.h"
#include "simd/vec.h"

namespace vllm::VLLM_ISA {

template <class Units>
struct WordCells {
  using Cell = uint32_t;
  static constexpr int kPerCell = Units::kPerUnit, kRows = kFloatRows;
  static constexpr bool kBytes = false, kScaled = false;
  static constexpr float kFactor = 1.0f;

  template <int M, int N>
  VLLM_INLINE void dot(const Cell* w, ptrdiff_t step_stride, ptrdiff_t vector_stride, const uint32_t* x,
                       ptrdiff_t x_stride, int steps, f32x16 (&acc)[M][N]) {
    dot_vectors<Units, M, N>(w, step_stride, vector_stride, x, x_stride, steps, acc);
  }
};

template <class Lanes, bool kWithScales>
struct ByteCells {
  using Cell = uint8_t;
  static constexpr int kPerCell = 1, kRows = kPairRows;
  static constexpr bool kBytes = true, kScaled = kWithScales;
  static constexpr float kFactor = Lanes::kFactor;

  template <int M, int N>
  VLLM_INLINE void dot(const Cell* w, ptrdiff_t step_stride, ptrdiff_t vector_stride, const uint32_t* x,
                       ptrdiff_t x_stride, int steps, f32x16 (&acc)[M][N]) {
    dot_bytes<Lanes, M, N>(w, step_stride, vector_stride, reinterpret_cast<const float*>(x), x_stride, steps, acc);
  }
  // 16 numbers as floats, for a panel that dot_vectors<F32Units> then multiplies to the same bits as `dot`.
  VLLM_INLINE void unpack(const Cell* cells, float* out) { store(out, Lanes::load(cells)); }
};

using F32Cells = WordCells<F32Units>;
using Bf16Cells = WordCells<Bf16Units>;
using F8Cells = ByteCells<F8Lanes, false>;
using Int8Cells = ByteCells<Int8Lanes, true>;

}  // namespace vllm::VLLM_ISA
