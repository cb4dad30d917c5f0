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

// 16 numbers in 8-bit floating point (e4m3): to nearest, ties to even; beyond +-448, and for NaN, +-448.
VLLM_INLINE void store_f8(uint8_t* p, f32x16 x) {
  uint32_t bits[16], small[16];
  const f32x16 size = min(abs(x), broadcast(448.0f));
  // The last bit of 2^14 + size is worth 2^-9, as that of numbers below 2^-6 is here.
  const f32x16 steps = add(size, broadcast(16384.0f));
  std::memcpy(bits, &size, sizeof bits);
  std::memcpy(small, &steps, sizeof small);
  uint32_t signs[16];
  std::memcpy(signs, &x, sizeof signs);
  for (int i = 0; i < 16; ++i) {
    const uint32_t normal = ((bits[i] + 0x7ffff + (bits[i] >> 20 & 1)) >> 20) - (120 << 3);
    const uint32_t code = bits[i] < 0x3c800000 ? small[i] & 15 : normal;
    p[i] = static_cast<uint8_t>(code | (signs[i] >> 24 & 0x80));
  }
}

// x * sigmoid(x)
VLLM_INLINE f32x16 silu(f32x16 x) {
  const f32x16 one = broadcast(1.0f);
  return div(x, add(one, exp(sub(zeros(), x))));
}

}  // namespace vllm::VLLM_ISA
