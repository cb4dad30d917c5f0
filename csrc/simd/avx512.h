// The vocabulary on AVX-512 (F, BW, DQ, VL), with BF16 and VNNI instructions where the flags allow them.
#pragma once

#include <immintrin.h>

namespace vllm::VLLM_ISA {

inline constexpr int kFloatRows = 12, kInt8Rows = 8, kInt4Rows = 8, kColumns = 2;

struct f32x16 {
  __m512 v;
};
struct i32x16 {
  __m512i v;
};
struct units {
  __m512i v;
};
struct bytes {
  __m512i v;
};

VLLM_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1); }

VLLM_INLINE f32x16 zeros() { return {_mm512_setzero_ps()}; }
VLLM_INLINE f32x16 broadcast(float x) { return {_mm512_set1_ps(x)}; }
VLLM_INLINE f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
VLLM_INLINE f32x16 load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
VLLM_INLINE void store(float* p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
VLLM_INLINE void store(float* p, f32x16 a, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), a.v); }

VLLM_INLINE f32x16 add(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
VLLM_INLINE f32x16 sub(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
VLLM_INLINE f32x16 mul(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
VLLM_INLINE f32x16 div(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
VLLM_INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
VLLM_INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
VLLM_INLINE f32x16 abs(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
VLLM_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
VLLM_INLINE float sum(f32x16 a) { return _mm512_reduce_add_ps(a.v); }
VLLM_INLINE float largest(f32x16 a) { return _mm512_reduce_max_ps(a.v); }

VLLM_INLINE uint32_t ge_mask(f32x16 a, f32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }
VLLM_INLINE uint32_t gt_mask(f32x16 a, f32x16 b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
VLLM_INLINE f32x16 select(uint32_t mask, f32x16 a, f32x16 b) {
  return {_mm512_mask_blend_ps(static_cast<__mmask16>(mask), b.v, a.v)};
}

VLLM_INLINE i32x16 int_zeros() { return {_mm512_setzero_si512()}; }
VLLM_INLINE i32x16 broadcast(int32_t x) { return {_mm512_set1_epi32(x)}; }
VLLM_INLINE i32x16 load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
VLLM_INLINE i32x16 add(i32x16 a, i32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
VLLM_INLINE int32_t sum(i32x16 a) { return _mm512_reduce_add_epi32(a.v); }
VLLM_INLINE i32x16 to_int(f32x16 a) { return {_mm512_cvtps_epi32(a.v)}; }
VLLM_INLINE f32x16 to_float(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
VLLM_INLINE f32x16 exponent_of_two(i32x16 i) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(i.v, _mm512_set1_epi32(127)), 23))};
}

VLLM_INLINE f32x16 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
VLLM_INLINE f32x16 load_u8(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
VLLM_INLINE f32x16 load_s8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
// Sign, exponent and mantissa, moved to where half precision has them.
VLLM_INLINE f32x16 load_f8(const uint8_t* p) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
  return {_mm512_cvtph_ps(half)};
}
VLLM_INLINE void store_int8(int8_t* p, i32x16 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}

VLLM_INLINE __m256i round_to_bf16(f32x16 a) {
#if defined(__AVX512BF16__)
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a.v));
#else
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
#endif
}
VLLM_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), round_to_bf16(a));
}

VLLM_INLINE units load_units(const uint32_t* p) { return {_mm512_loadu_si512(p)}; }
VLLM_INLINE units broadcast_unit(const uint32_t* p) { return {_mm512_set1_epi32(static_cast<int>(*p))}; }
VLLM_INLINE f32x16 as_float(units a) { return {_mm512_castsi512_ps(a.v)}; }
VLLM_INLINE f32x16 dot_bf16(f32x16 acc, units a, units b) {
#if defined(__AVX512BF16__)
  return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
#else
  const __m512i odd = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512 even_sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a.v, 16)),
                                          _mm512_castsi512_ps(_mm512_slli_epi32(b.v, 16)), acc.v);
  return {_mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a.v, odd)),
                          _mm512_castsi512_ps(_mm512_and_si512(b.v, odd)), even_sum)};
#endif
}

VLLM_INLINE bytes load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
VLLM_INLINE bytes broadcast_bytes(const int8_t* p) {
  return {_mm512_set1_epi32(*reinterpret_cast<const FourBytes*>(p))};
}
VLLM_INLINE bytes low_nibbles(bytes a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
VLLM_INLINE bytes high_nibbles(bytes a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
#if defined(__AVX512VNNI__)
// In assembly because GCC copies the accumulator around the intrinsic, and then runs out of registers.
VLLM_INLINE i32x16 dot_int8(i32x16 acc, bytes u, bytes s) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(u.v), "v"(s.v));
  return acc;
}
VLLM_INLINE i32x16 dot_int4(i32x16 acc, bytes u, bytes s) { return dot_int8(acc, u, s); }
#else
VLLM_INLINE i32x16 dot_int8(i32x16 acc, bytes u, bytes s) {
  const __m512i even =
      _mm512_madd_epi16(_mm512_and_si512(u.v, _mm512_set1_epi16(255)), _mm512_srai_epi16(_mm512_slli_epi16(s.v, 8), 8));
  const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(u.v, 8), _mm512_srai_epi16(s.v, 8));
  return {_mm512_add_epi32(acc.v, _mm512_add_epi32(even, odd))};
}
VLLM_INLINE i32x16 dot_int4(i32x16 acc, bytes u, bytes s) {
  const __m512i pairs = _mm512_maddubs_epi16(u.v, s.v);
  return {_mm512_add_epi32(acc.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
}
#endif

using codes = bytes;
using nibble_sums = i32x16;
VLLM_INLINE codes load_codes(const uint8_t* p) { return load_bytes(p); }
VLLM_INLINE i32x16 begin_int8(int32_t start) { return broadcast(start); }
VLLM_INLINE nibble_sums begin_int4(int32_t start) { return broadcast(start); }
VLLM_INLINE i32x16 end_int4(nibble_sums acc, int32_t) { return acc; }

VLLM_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace vllm::VLLM_ISA
