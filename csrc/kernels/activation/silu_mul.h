// SwiGLU where it is not fused into the product before it.
#pragma once

#include "kernels/args.h"
#include "simd/vec.h"

namespace vllm::VLLM_ISA {

void silu_mul(SiluMulArgs& args, int begin, int end) {
  for (int row = begin; row < end; ++row) {
    const float* gate = args.x + row * args.x_stride;
    const float* up = gate + args.dim;
    float* y = args.y + row * args.y_stride;
    int i = 0;
    for (; i + kLanes <= args.dim; i += kLanes) store(y + i, mul(silu(load(gate + i)), load(up + i)));
    const int left = args.dim - i;
    if (left > 0) store(y + i, mul(silu(load(gate + i, left)), load(up + i, left)), left);
  }
}

}  // namespace vllm::VLLM_ISA
