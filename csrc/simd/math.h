// Functions written once over the vocabulary.
#pragma once

namespace vllm::VLLM_ISA {

// e^x to about one unit in the last place; 0 below -87.3 (so for -inf, too), finite for x <= 88.
VLLM_INLINE f32x16 exp(f32x16 x) {
  const f32x16 lowest = broadcast(-87.33654f);
  const uint32_t normal = ge_mask(x, lowest);
  const f32x16 clamped = min(max(x, lowest), broadcast(88.0f));
  const i32x16 power = to_int(mul(clamped, broadcast(1.44269504f)));
  const f32x16 n = to_float(power);
  f32x16 r = fma(n, broadcast(-0.693359375f), clamped);
  r = fma(n, broadcast(2.12194440e-4f), r);
  f32x16 p = broadcast(1.9875691500e-4f);
  p = fma(p, r, broadcast(1.3981999507e-3f));
  p = fma(p, r, broadcast(8.3334519073e-3f));
  p = fma(p, r, broadcast(4.1665795894e-2f));
  p = fma(p, r, broadcast(1.6666665459e-1f));
  p = fma(p, r, broadcast(5.0000001201e-1f));
  const f32x16 e = add(fma(mul(r, r), p, r), broadcast(1.0f));
  return select(normal, mul(e, exponent_of_two(power)), zeros());
}

// x * sigmoid(x)
VLLM_INLINE f32x16 silu(f32x16 x) {
  const f32x16 one = broadcast(1.0f);
  return div(x, add(one, exp(sub(zeros(), x))));
}

}  // namespace vllm::VLLM_ISA
