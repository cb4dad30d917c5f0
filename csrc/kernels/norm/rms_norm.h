// Root-mean-square normalisation.
#pragma once

#include "kernels/args.h"
#include "simd/vec.h"

namespace vllm::VLLM_ISA {

VLLM_INLINE float inverse_rms(const float* x, int dim, float eps) {
  f32x16 squares = zeros();
  int i = 0;
  for (; i + kLanes <= dim; i += kLanes) squares = fma(load(x + i), load(x + i), squares);
  if (i < dim) squares = fma(load(x + i, dim - i), load(x + i, dim - i), squares);
  return 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(dim) + eps);
}

// y may be x.
VLLM_INLINE void normalize(const float* x, const float* weight, float* y, int dim, float eps) {
  const f32x16 factor = broadcast(inverse_rms(x, dim, eps));
  int i = 0;
  for (; i + kLanes <= dim; i += kLanes) store(y + i, mul(mul(load(x + i), factor), load(weight + i)));
  if (i < dim) store(y + i, mul(mul(load(x + i, dim - i), factor), load(weight + i, dim - i)), dim - i);
}

void rms_norm(RmsNormArgs& args, int begin, int end) {
  for (int row = begin; row < end; ++row)
    normalize(args.x + row * args.x_stride, args.weight, args.y + row * args.y_stride, args.dim, args.eps);
}

}  // namespace vllm::VLLM_ISA
