// The vocabulary in plain C++: loops over 16 lanes that the compiler vectorises with what every machine has.
//
// fma rounds twice here (a library fma without hardware is a hundred times slower); every kernel uses the same one.
#pragma once

namespace vllm::VLLM_ISA {

inline constexpr int kRegisters = 8;

struct f32x16 {
  float v[16];
};
struct i32x16 {
  int32_t v[16];
};
struct units {
  uint32_t v[16];
};
struct bytes {
  uint8_t v[64];
};

template <class Vector, class Function>
VLLM_INLINE Vector make(Function function) {
  Vector result;
  for (int i = 0; i < 16; ++i) result.v[i] = function(i);
  return result;
}
VLLM_INLINE float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
VLLM_INLINE uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

VLLM_INLINE f32x16 broadcast(float x) {
  return make<f32x16>([=](int) { return x; });
}
VLLM_INLINE f32x16 zeros() { return broadcast(0.0f); }
VLLM_INLINE f32x16 load(const float* p) {
  f32x16 a;
  std::memcpy(a.v, p, sizeof a);
  return a;
}
VLLM_INLINE f32x16 load(const float* p, int n) {
  return make<f32x16>([=](int i) { return i < n ? p[i] : 0.0f; });
}
VLLM_INLINE void store(float* p, f32x16 a) { std::memcpy(p, a.v, sizeof a); }
VLLM_INLINE void store(float* p, f32x16 a, int n) { std::memcpy(p, a.v, sizeof(float) * static_cast<size_t>(n)); }

VLLM_INLINE f32x16 add(const f32x16& a, const f32x16& b) {
  return make<f32x16>([&](int i) { return a.v[i] + b.v[i]; });
}
VLLM_INLINE f32x16 sub(const f32x16& a, const f32x16& b) {
  return make<f32x16>([&](int i) { return a.v[i] - b.v[i]; });
}
VLLM_INLINE f32x16 mul(const f32x16& a, const f32x16& b) {
  return make<f32x16>([&](int i) { return a.v[i] * b.v[i]; });
}
VLLM_INLINE f32x16 div(const f32x16& a, const f32x16& b) {
  return make<f32x16>([&](int i) { return a.v[i] / b.v[i]; });
}
VLLM_INLINE f32x16 max(const f32x16& a, const f32x16& b) {
  return make<f32x16>([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
VLLM_INLINE f32x16 min(const f32x16& a, const f32x16& b) {
  return make<f32x16>([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
VLLM_INLINE f32x16 abs(const f32x16& a) {
  return make<f32x16>([&](int i) { return a.v[i] < 0.0f ? -a.v[i] : a.v[i]; });
}
VLLM_INLINE f32x16 fma(const f32x16& a, const f32x16& b, const f32x16& c) {
  return make<f32x16>([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
VLLM_INLINE float sum(f32x16 a) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
  return a.v[0];
}
VLLM_INLINE float largest(f32x16 a) {
  for (int i = 1; i < 16; ++i) a.v[0] = a.v[i] > a.v[0] ? a.v[i] : a.v[0];
  return a.v[0];
}

VLLM_INLINE uint32_t ge_mask(const f32x16& a, const f32x16& b) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<uint32_t>(a.v[i] >= b.v[i]) << i;
  return mask;
}
VLLM_INLINE uint32_t gt_mask(const f32x16& a, const f32x16& b) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<uint32_t>(a.v[i] > b.v[i]) << i;
  return mask;
}
VLLM_INLINE f32x16 select(uint32_t mask, const f32x16& a, const f32x16& b) {
  return make<f32x16>([&](int i) { return mask >> i & 1 ? a.v[i] : b.v[i]; });
}

VLLM_INLINE i32x16 broadcast(int32_t x) {
  return make<i32x16>([=](int) { return x; });
}
VLLM_INLINE i32x16 int_zeros() { return broadcast(int32_t{0}); }
VLLM_INLINE i32x16 load(const int32_t* p) {
  i32x16 a;
  std::memcpy(a.v, p, sizeof a);
  return a;
}
VLLM_INLINE i32x16 add(const i32x16& a, const i32x16& b) {
  return make<i32x16>([&](int i) { return a.v[i] + b.v[i]; });
}
VLLM_INLINE int32_t sum(const i32x16& a) {
  int32_t total = 0;
  for (int i = 0; i < 16; ++i) total += a.v[i];
  return total;
}
VLLM_INLINE i32x16 to_int(const f32x16& a) {
  return make<i32x16>([&](int i) { return static_cast<int32_t>(__builtin_rintf(a.v[i])); });
}
VLLM_INLINE f32x16 to_float(const i32x16& a) {
  return make<f32x16>([&](int i) { return static_cast<float>(a.v[i]); });
}
VLLM_INLINE f32x16 exponent_of_two(const i32x16& a) {
  return make<f32x16>([&](int i) { return float_of_bits(static_cast<uint32_t>(a.v[i] + 127) << 23); });
}

VLLM_INLINE float float_of_f16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t rest = half & 0x7fff;
  if (rest >= 0x7c00) return float_of_bits(sign | 0x7f800000u | (rest & 0x3ff) << 13);
  // The exponent is off by 127 - 15; a product with 2^112 also normalises subnormal numbers.
  return float_of_bits(sign | bits_of_float(float_of_bits(rest << 13) * float_of_bits(0x77800000u)));
}
VLLM_INLINE f32x16 load_f16(const uint16_t* p) {
  return make<f32x16>([=](int i) { return float_of_f16(p[i]); });
}
VLLM_INLINE f32x16 load_u8(const uint8_t* p) {
  return make<f32x16>([=](int i) { return static_cast<float>(p[i]); });
}
VLLM_INLINE void store_int8(int8_t* p, const i32x16& a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}
VLLM_INLINE void store_bf16(uint16_t* p, const f32x16& a) {
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = bits_of_float(a.v[i]);
    const uint32_t rounded = a.v[i] != a.v[i] ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    p[i] = static_cast<uint16_t>(rounded >> 16);
  }
}

VLLM_INLINE units load_units(const uint32_t* p) {
  units a;
  std::memcpy(a.v, p, sizeof a);
  return a;
}
VLLM_INLINE units broadcast_unit(const uint32_t* p) {
  return make<units>([=](int) { return *p; });
}
VLLM_INLINE f32x16 as_float(const units& a) {
  return make<f32x16>([&](int i) { return float_of_bits(a.v[i]); });
}
VLLM_INLINE f32x16 dot_bf16(const f32x16& acc, const units& a, const units& b) {
  return make<f32x16>([&](int i) {
    const float even = float_of_bits(a.v[i] << 16) * float_of_bits(b.v[i] << 16);
    const float odd = float_of_bits(a.v[i] & 0xffff0000u) * float_of_bits(b.v[i] & 0xffff0000u);
    return acc.v[i] + even + odd;
  });
}

VLLM_INLINE bytes load_bytes(const uint8_t* p) {
  bytes a;
  std::memcpy(a.v, p, sizeof a);
  return a;
}
VLLM_INLINE bytes broadcast_bytes(const int8_t* p) {
  bytes a;
  for (int i = 0; i < 64; ++i) a.v[i] = static_cast<uint8_t>(p[i % 4]);
  return a;
}
VLLM_INLINE bytes low_nibbles(bytes a) {
  for (uint8_t& byte : a.v) byte &= 15;
  return a;
}
VLLM_INLINE bytes high_nibbles(bytes a) {
  for (uint8_t& byte : a.v) byte = static_cast<uint8_t>(byte >> 4);
  return a;
}
VLLM_INLINE i32x16 dot_int8(const i32x16& acc, const bytes& u, const bytes& s) {
  return make<i32x16>([&](int i) {
    int32_t total = acc.v[i];
    for (int j = 4 * i; j < 4 * i + 4; ++j) total += u.v[j] * static_cast<int8_t>(s.v[j]);
    return total;
  });
}
VLLM_INLINE i32x16 dot_int4(const i32x16& acc, const bytes& u, const bytes& s) { return dot_int8(acc, u, s); }

VLLM_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace vllm::VLLM_ISA
