// Linear layers with float32 and bfloat16 weights: tile = [k / per_unit][32 outputs] units.
#pragma once

#include "kernels/linear/dot_block.h"
#include "kernels/linear/finish.h"

namespace vllm::VLLM_ISA {

template <class Units>
VLLM_INLINE void linear_units(const LinearArgs& args, int begin, int end) {
  const int steps = ceil_div(args.weight.num_in, Units::kPerUnit);
  const auto* x = static_cast<const uint32_t*>(args.x.values);
  for_tiles<kFloatRows>(args, begin, end, [&](auto count, int tile, int first, auto& acc) {
    constexpr int kM = decltype(count)::value;
    const auto* w =
        reinterpret_cast<const uint32_t*>(args.weight.data + static_cast<size_t>(tile) * args.weight.tile_bytes);
    VLLM_UNROLL for (int m = 0; m < kM; ++m) acc[m][0] = acc[m][1] = zeros();
    dot_vectors<Units, kM, 2>(w, kTile, kLanes, x + first * args.x.stride, args.x.stride, steps, acc);
  });
}

void linear_f32(LinearArgs& args, int begin, int end) { linear_units<F32Units>(args, begin, end); }
void linear_bf16(LinearArgs& args, int begin, int end) { linear_units<Bf16Units>(args, begin, end); }

}  // namespace vllm::VLLM_ISA
