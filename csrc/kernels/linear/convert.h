// A linear layer's input, row by row: RMS-normalised if wanted, then rounded to what the weights want.
#pragma once

#include "kernels/args.h"
#include "kernels/norm/rms_norm.h"
#include "simd/vec.h"

namespace vllm::VLLM_ISA {

// The row as floats, 16 at a time: x, or x / rms * weight.
struct RowReader {
  const float* x;
  const float* weight;
  f32x16 factor;
  int dim;

  RowReader(const ConvertArgs& args, int row)
      : x(args.x + row * args.x_stride),
        weight(args.norm_weight),
        factor(weight ? broadcast(inverse_rms(x, args.dim, args.eps)) : zeros()),
        dim(args.dim) {}

  f32x16 at(int i) const {
    const int left = dim - i;
    if (left >= kLanes) return weight ? mul(mul(load(x + i), factor), load(weight + i)) : load(x + i);
    return weight ? mul(mul(load(x + i, left), factor), load(weight + i, left)) : load(x + i, left);
  }
};

void convert_f32(ConvertArgs& args, int begin, int end) {
  for (int row = begin; row < end; ++row) {
    const RowReader reader(args, row);
    auto* out = static_cast<float*>(args.out.values) + row * args.out.stride;
    for (int i = 0; i < args.dim; i += kLanes) store(out + i, reader.at(i));
  }
}

void convert_bf16(ConvertArgs& args, int begin, int end) {
  for (int row = begin; row < end; ++row) {
    const RowReader reader(args, row);
    auto* out = reinterpret_cast<uint16_t*>(static_cast<uint32_t*>(args.out.values) + row * args.out.stride);
    for (int i = 0; i < args.dim; i += kLanes) store_bf16(out + i, reader.at(i));
  }
}

void convert_int8(ConvertArgs& args, int begin, int end) {
  for (int row = begin; row < end; ++row) {
    const RowReader reader(args, row);
    int8_t* out = static_cast<int8_t*>(args.out.values) + row * args.out.stride;
    const ptrdiff_t groups = row * args.out.groups_stride;
    for (int g = 0; g * kGroup < args.dim; ++g) {
      const int first = g * kGroup, second = first + kLanes;
      const f32x16 x = reader.at(first), y = second < args.dim ? reader.at(second) : zeros();
      const float size = largest(max(abs(x), abs(y)));
      const f32x16 inverse = broadcast(size > 0.0f ? 127.0f / size : 0.0f);
      const i32x16 a = to_int(mul(x, inverse)), b = to_int(mul(y, inverse));
      store_int8(out + first, a);
      store_int8(out + second, b);
      const int32_t total = sum(add(a, b));
      const float scale = size / 127.0f;
      args.out.scale[groups + g] = scale;
      args.out.sum[groups + g] = scale * static_cast<float>(total);
      args.out.start[groups + g] = -args.out.zero * total;
    }
  }
}

}  // namespace vllm::VLLM_ISA
