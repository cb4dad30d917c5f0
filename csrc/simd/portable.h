// The vocabulary in the compiler's own vectors, which it lowers to whatever every machine has.
//
// fma rounds twice here (a library fma without hardware is a hundred times slower); every kernel uses the same one.
// to_int holds for numbers below 2^22 in size, which is all that kernels give it.
#pragma once

namespace vllm::VLLM_ISA {

inline constexpr int kFloatRows = 2, kInt8Rows = 2, kInt4Rows = 2, kColumns = 2;

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef int16_t Shorts __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(64)));

struct f32x16 {
  Floats v;
};
struct i32x16 {
  Ints v;
};
struct units {
  Words v;
};
struct bytes {
  Words v;
};

template <class Vector>
VLLM_INLINE Vector load_as(const void* p) {
  Vector vector;
  std::memcpy(&vector.v, p, sizeof vector.v);
  return vector;
}
VLLM_INLINE f32x16 zeros() { return {Floats{}}; }
VLLM_INLINE f32x16 broadcast(float x) { return {Floats{} + x}; }
VLLM_INLINE f32x16 load(const float* p) { return load_as<f32x16>(p); }
VLLM_INLINE f32x16 load(const float* p, int n) {
  f32x16 a = zeros();
  for (int i = 0; i < n; ++i) a.v[i] = p[i];
  return a;
}
VLLM_INLINE void store(float* p, f32x16 a) { std::memcpy(p, &a.v, sizeof a.v); }
VLLM_INLINE void store(float* p, f32x16 a, int n) {
  for (int i = 0; i < n; ++i) p[i] = a.v[i];
}

VLLM_INLINE f32x16 add(f32x16 a, f32x16 b) { return {a.v + b.v}; }
VLLM_INLINE f32x16 sub(f32x16 a, f32x16 b) { return {a.v - b.v}; }
VLLM_INLINE f32x16 mul(f32x16 a, f32x16 b) { return {a.v * b.v}; }
VLLM_INLINE f32x16 div(f32x16 a, f32x16 b) { return {a.v / b.v}; }
VLLM_INLINE f32x16 max(f32x16 a, f32x16 b) { return {a.v > b.v ? a.v : b.v}; }
VLLM_INLINE f32x16 min(f32x16 a, f32x16 b) { return {a.v < b.v ? a.v : b.v}; }
VLLM_INLINE f32x16 abs(f32x16 a) { return {(Floats)((Words)a.v & 0x7fffffffu)}; }
VLLM_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {a.v * b.v + c.v}; }
VLLM_INLINE float sum(f32x16 a) {
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) a.v[i] += a.v[i + width];
  return a.v[0];
}
VLLM_INLINE float largest(f32x16 a) {
  float most = a.v[0];
  for (int i = 1; i < 16; ++i) most = a.v[i] > most ? a.v[i] : most;
  return most;
}

VLLM_INLINE uint32_t mask_of(Ints lanes) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<uint32_t>(lanes[i] & 1) << i;
  return mask;
}
VLLM_INLINE uint32_t ge_mask(f32x16 a, f32x16 b) { return mask_of(a.v >= b.v); }
VLLM_INLINE uint32_t gt_mask(f32x16 a, f32x16 b) { return mask_of(a.v > b.v); }
VLLM_INLINE f32x16 select(uint32_t mask, f32x16 a, f32x16 b) {
  const Words bit = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
  return {(bit & mask) != 0 ? a.v : b.v};
}

VLLM_INLINE i32x16 broadcast(int32_t x) { return {Ints{} + x}; }
VLLM_INLINE i32x16 int_zeros() { return {Ints{}}; }
VLLM_INLINE i32x16 load(const int32_t* p) { return load_as<i32x16>(p); }
VLLM_INLINE i32x16 add(i32x16 a, i32x16 b) { return {a.v + b.v}; }
VLLM_INLINE int32_t sum(i32x16 a) {
  int32_t total = 0;
  for (int i = 0; i < 16; ++i) total += a.v[i];
  return total;
}
// In 1.5 * 2^23 + x the last bit is worth 1, so adding rounds x as wanted.
VLLM_INLINE i32x16 to_int(f32x16 a) { return {(Ints)(a.v + 0x1.8p23f) - 0x4b400000}; }
VLLM_INLINE f32x16 to_float(i32x16 a) { return {__builtin_convertvector(a.v, Floats)}; }
VLLM_INLINE f32x16 exponent_of_two(i32x16 i) { return {(Floats)((i.v + 127) << 23)}; }

VLLM_INLINE f32x16 load_f16(const uint16_t* p) {
  Words half;
  for (int i = 0; i < 16; ++i) half[i] = p[i];
  const Words sign = (half & 0x8000) << 16, rest = half & 0x7fff;
  // The exponent is off by 127 - 15; a product with 2^112 also normalises subnormal numbers.
  const Words finite = (Words)((Floats)(rest << 13) * 0x1p112f);
  const Words infinite = 0x7f800000u | (rest & 0x3ff) << 13;
  return {(Floats)(sign | (rest >= 0x7c00 ? infinite : finite))};
}
VLLM_INLINE f32x16 load_u8(const uint8_t* p) {
  f32x16 a;
  for (int i = 0; i < 16; ++i) a.v[i] = static_cast<float>(p[i]);
  return a;
}
VLLM_INLINE f32x16 load_s8(const int8_t* p) {
  f32x16 a;
  for (int i = 0; i < 16; ++i) a.v[i] = static_cast<float>(p[i]);
  return a;
}
VLLM_INLINE f32x16 load_f8(const uint8_t* p) {
  Words code;
  for (int i = 0; i < 16; ++i) code[i] = p[i];
  // As for half precision: the exponent is off by 127 - 7, of which 2^-8 stays.
  const Words finite = (Words)((Floats)((code & 0x7f) << 20) * 0x1p112f);
  return {(Floats)((code & 0x80) << 24 | finite)};
}
VLLM_INLINE void store_int8(int8_t* p, i32x16 a) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}
VLLM_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  const Words bits = (Words)a.v;
  const Words rounded = (a.v != a.v ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  for (int i = 0; i < 16; ++i) p[i] = static_cast<uint16_t>(rounded[i]);
}

VLLM_INLINE units load_units(const uint32_t* p) { return load_as<units>(p); }
VLLM_INLINE units broadcast_unit(const uint32_t* p) { return {Words{} + *p}; }
VLLM_INLINE f32x16 as_float(units a) { return {(Floats)a.v}; }
VLLM_INLINE f32x16 dot_bf16(f32x16 acc, units a, units b) {
  const Floats even = (Floats)(a.v << 16) * (Floats)(b.v << 16);
  return {acc.v + even + (Floats)(a.v & 0xffff0000u) * (Floats)(b.v & 0xffff0000u)};
}

VLLM_INLINE bytes load_bytes(const uint8_t* p) { return load_as<bytes>(p); }
VLLM_INLINE bytes broadcast_bytes(const int8_t* p) {
  return {Words{} + static_cast<uint32_t>(*reinterpret_cast<const FourBytes*>(p))};
}
VLLM_INLINE bytes low_nibbles(bytes a) { return {a.v & 0x0f0f0f0fu}; }
VLLM_INLINE bytes high_nibbles(bytes a) { return {a.v >> 4 & 0x0f0f0f0fu}; }
// Products of even and of odd bytes fit into 16 bits; the two in a lane are added as 32-bit numbers.
VLLM_INLINE Ints add_pairs(Shorts products) { return ((Ints)products << 16 >> 16) + ((Ints)products >> 16); }
VLLM_INLINE i32x16 dot_int8(i32x16 acc, bytes u, bytes s) {
  const Shorts even = (Shorts)((Halves)u.v & 255) * ((Shorts)((Halves)s.v << 8) >> 8);
  const Shorts odd = (Shorts)((Halves)u.v >> 8) * ((Shorts)s.v >> 8);
  return {acc.v + add_pairs(even) + add_pairs(odd)};
}
VLLM_INLINE i32x16 dot_int4(i32x16 acc, bytes u, bytes s) { return dot_int8(acc, u, s); }

using codes = bytes;
using nibble_sums = i32x16;
VLLM_INLINE codes load_codes(const uint8_t* p) { return load_bytes(p); }
VLLM_INLINE i32x16 begin_int8(int32_t start) { return broadcast(start); }
VLLM_INLINE nibble_sums begin_int4(int32_t start) { return broadcast(start); }
VLLM_INLINE i32x16 end_int4(nibble_sums acc, int32_t) { return acc; }

VLLM_INLINE void prefetch(const void* p) { __builtin_prefetch(p); }

}  // namespace vllm::VLLM_ISA
