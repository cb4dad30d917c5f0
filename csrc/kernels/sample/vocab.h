// Passes over the logits of a whole vocabulary.
#pragma once

#include "kernels/args.h"
#include "simd/vec.h"

namespace vllm::VLLM_ISA {

// Logits i .. i + 15; lanes past the end are `fill`.
VLLM_INLINE f32x16 logits_at(const VocabArgs& args, int i, int end, float fill) {
  const int n = end - i;
  if (n >= kLanes) return load(args.x + i);
  return select((1u << n) - 1, load(args.x + i, n), broadcast(fill));
}

void vocab_divide(VocabArgs& args, int begin, int end) {
  const f32x16 divisor = broadcast(args.divisor);
  for (int i = begin; i < end; i += kLanes) {
    const f32x16 value = div(logits_at(args, i, end, 0.0f), divisor);
    if (end - i >= kLanes)
      store(args.y + i, value);
    else
      store(args.y + i, value, end - i);
  }
}

void vocab_maxima(VocabArgs& args, int begin, int end) {
  const float least = -__builtin_inff();
  for (int i = begin; i < end; i += kMaximaBlock) {
    const int stop = end - i < kMaximaBlock ? end : i + kMaximaBlock;
    f32x16 greatest = broadcast(least);
    for (int j = i; j < stop; j += kLanes) greatest = max(logits_at(args, j, stop, least), greatest);
    args.maxima[i / kMaximaBlock] = largest(greatest);
  }
}

void vocab_collect(VocabArgs& args, int begin, int end) {
  const f32x16 bound = broadcast(args.bound);
  for (int i = begin; i < end; i += kLanes) {
    uint32_t mask = ge_mask(logits_at(args, i, end, 0.0f), bound);
    if (end - i < kLanes) mask &= (1u << (end - i)) - 1;
    for (; mask; mask &= mask - 1) args.ids[args.count++] = i + __builtin_ctz(mask);
  }
}

void vocab_rank(VocabArgs& args, int begin, int end) {
  const f32x16 bound = broadcast(args.bound);
  const float least = -__builtin_inff();
  for (int i = begin; i < end; i += kLanes)
    args.count += __builtin_popcount(gt_mask(logits_at(args, i, end, least), bound));
}

void vocab_sum_exp(VocabArgs& args, int begin, int end) {
  const f32x16 peak = broadcast(args.bound);
  f32x16 total = zeros();
  for (int i = begin; i < end; i += kLanes)
    total = add(total, exp(sub(logits_at(args, i, end, -__builtin_inff()), peak)));
  args.total += static_cast<double>(sum(total));
}

}  // namespace vllm::VLLM_ISA
