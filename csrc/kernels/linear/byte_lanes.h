// The inner loop over 8-bit numbers that become floats in registers: M rows of x by N vectors of 16 columns.
#pragma once

#include "simd/vec.h"

namespace vllm::VLLM_ISA {

// 16 columns as floats; a number is kFactor times what load gives.
struct F8Lanes {
  static constexpr float kFactor = 256.0f;
  VLLM_INLINE f32x16 load(const uint8_t* p) { return load_f8(p); }
};
struct Int8Lanes {
  static constexpr float kFactor = 1.0f;
  VLLM_INLINE f32x16 load(const uint8_t* p) { return load_s8(reinterpret_cast<const int8_t*>(p)); }
};

// acc[m][n] += sum over s < steps of w[s][n] * x[m][s], in the order of s: dot_block<F32Units> on the same numbers gives
// the same bits. w: vector n of step s is at w + s * step_stride + n * vector_stride; x: row m is at x + m * x_stride.
template <class Lanes, int M, int N>
VLLM_INLINE void dot_bytes(const uint8_t* w, ptrdiff_t step_stride, ptrdiff_t vector_stride, const float* x,
                           ptrdiff_t x_stride, int steps, f32x16 (&acc)[M][N]) {
  for (int s = 0; s < steps; ++s, w += step_stride) {
    f32x16 column[N];
    VLLM_UNROLL for (int n = 0; n < N; ++n) column[n] = Lanes::load(w + n * vector_stride);
    VLLM_UNROLL for (int m = 0; m < M; ++m) {
      const f32x16 row = broadcast(x[m * x_stride + s]);
      VLLM_UNROLL for (int n = 0; n < N; ++n) acc[m][n] = fma(column[n], row, acc[m][n]);
    }
  }
}

}  // namespace vllm::VLLM_ISA
