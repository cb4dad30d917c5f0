// The inner loop of everything that multiplies: M rows of x by N vectors of 16 weight columns.
#pragma once

#include "simd/vec.h"

namespace vllm::VLLM_ISA {

// A unit is 32 bits: one float, or two bf16 that belong to neighbouring k.
struct F32Units {
  static constexpr int kPerUnit = 1;
  VLLM_INLINE f32x16 dot(f32x16 acc, units a, units b) { return fma(as_float(a), as_float(b), acc); }
};
struct Bf16Units {
  static constexpr int kPerUnit = 2;
  VLLM_INLINE f32x16 dot(f32x16 acc, units a, units b) { return dot_bf16(acc, a, b); }
};

// acc[m][n] += sum over s < steps of w[s][n] * x[m][s], in the order of s whatever M and N are.
// w: vector n of step s is at w + s * step_stride + n * vector_stride; x: row m is at x + m * x_stride.
template <class Units, int M, int N>
VLLM_INLINE void dot_block(const uint32_t* w, ptrdiff_t step_stride, ptrdiff_t vector_stride, const uint32_t* x,
                           ptrdiff_t x_stride, int steps, f32x16 (&acc)[M][N]) {
  for (int s = 0; s < steps; ++s, w += step_stride) {
    units column[N];
    VLLM_UNROLL for (int n = 0; n < N; ++n) column[n] = load_units(w + n * vector_stride);
    VLLM_UNROLL for (int m = 0; m < M; ++m) {
      const units row = broadcast_unit(x + m * x_stride + s);
      VLLM_UNROLL for (int n = 0; n < N; ++n) acc[m][n] = Units::dot(acc[m][n], column[n], row);
    }
  }
}

// Most rows whose sums of two vectors stay in registers.
inline constexpr int kPairRows = kFloatRows * kColumns / 2;

// The same, cut to the registers there are: one vector after the other as soon as rows alone keep the pipes busy.
template <class Units, int M, int N>
VLLM_INLINE void dot_vectors(const uint32_t* w, ptrdiff_t step_stride, ptrdiff_t vector_stride, const uint32_t* x,
                             ptrdiff_t x_stride, int steps, f32x16 (&acc)[M][N]) {
  if constexpr (M <= 2 || N <= kColumns) {
    dot_block<Units, M, N>(w, step_stride, vector_stride, x, x_stride, steps, acc);
  } else {
    VLLM_UNROLL for (int n = 0; n < N; ++n) {
      f32x16 column[M][1];
      VLLM_UNROLL for (int m = 0; m < M; ++m) column[m][0] = acc[m][n];
      dot_block<Units, M, 1>(w + n * vector_stride, step_stride, 0, x, x_stride, steps, column);
      VLLM_UNROLL for (int m = 0; m < M; ++m) acc[m][n] = column[m][0];
    }
  }
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// Calls body(Count<m>{}, first) for blocks of nearly equal size, at most Max, that cover 0..rows.
template <int Max, class Body>
VLLM_INLINE void for_row_blocks(int rows, Body&& body) {
  const int blocks = (rows + Max - 1) / Max;
  for (int b = 0; b < blocks; ++b) {
    const int first = rows * b / blocks;
    const int count = rows * (b + 1) / blocks - first;
    switch (count) {
#define VLLM_CASE(m)                                 \
  case m:                                            \
    if constexpr (m <= Max) body(Count<m>{}, first); \
    break;
      VLLM_CASE(1)
      VLLM_CASE(2)
      VLLM_CASE(3)
      VLLM_CASE(4)
      VLLM_CASE(5)
      VLLM_CASE(6)
      VLLM_CASE(7)
      VLLM_CASE(8)
      VLLM_CASE(9)
      VLLM_CASE(10)
      VLLM_CASE(11)
      VLLM_CASE(12)
#undef VLLM_CASE
    }
  }
}

}  // namespace vllm::VLLM_ISA
