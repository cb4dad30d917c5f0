// The vocabulary on AVX2 with FMA and F16C: a vector is two registers.
#pragma once

#include <immintrin.h>

namespace vllm::VLLM_ISA {

inline constexpr int kFloatRows = 5, kInt8Rows = 4, kInt4Rows = 6, kColumns = 1;

struct f32x16 {
  __m256 lo, hi;
};
struct i32x16 {
  __m256i lo, hi;
};
struct units {
  __m256i lo, hi;
};
struct bytes {
  __m256i lo, hi;
};

VLLM_INLINE __m256i lanes_below(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
VLLM_INLINE __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

VLLM_INLINE f32x16 zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
VLLM_INLINE f32x16 broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
VLLM_INLINE f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
VLLM_INLINE f32x16 load(const float* p, int n) {
  return {_mm256_maskload_ps(p, lanes_below(n)), _mm256_maskload_ps(p + 8, lanes_below(n - 8))};
}
VLLM_INLINE void store(float* p, f32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
VLLM_INLINE void store(float* p, f32x16 a, int n) {
  _mm256_maskstore_ps(p, lanes_below(n), a.lo);
  _mm256_maskstore_ps(p + 8, lanes_below(n - 8), a.hi);
}

VLLM_INLINE f32x16 add(f32x16 a, f32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
VLLM_INLINE f32x16 sub(f32x16 a, f32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
VLLM_INLINE f32x16 mul(f32x16 a, f32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
VLLM_INLINE f32x16 div(f32x16 a, f32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
VLLM_INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
VLLM_INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
VLLM_INLINE f32x16 abs(f32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
VLLM_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
VLLM_INLINE float sum(f32x16 a) {
  const __m256 eight = _mm256_add_ps(a.lo, a.hi);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
VLLM_INLINE float largest(f32x16 a) {
  const __m256 eight = _mm256_max_ps(a.lo, a.hi);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}

template <int Predicate>
VLLM_INLINE uint32_t compare(f32x16 a, f32x16 b) {
  const uint32_t lo = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, Predicate)));
  const uint32_t hi = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, Predicate)));
  return lo | hi << 8;
}
VLLM_INLINE uint32_t ge_mask(f32x16 a, f32x16 b) { return compare<_CMP_GE_OQ>(a, b); }
VLLM_INLINE uint32_t gt_mask(f32x16 a, f32x16 b) { return compare<_CMP_GT_OQ>(a, b); }
VLLM_INLINE __m256 lanes_of_mask(uint32_t mask) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(mask)), bit);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bit));
}
VLLM_INLINE f32x16 select(uint32_t mask, f32x16 a, f32x16 b) {
  return {_mm256_blendv_ps(b.lo, a.lo, lanes_of_mask(mask)), _mm256_blendv_ps(b.hi, a.hi, lanes_of_mask(mask >> 8))};
}

VLLM_INLINE i32x16 int_zeros() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
VLLM_INLINE i32x16 broadcast(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
VLLM_INLINE i32x16 load(const int32_t* p) { return {load_256(p), load_256(p + 8)}; }
VLLM_INLINE i32x16 add(i32x16 a, i32x16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
VLLM_INLINE int32_t sum(i32x16 a) {
  const __m256i eight = _mm256_add_epi32(a.lo, a.hi);
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}
VLLM_INLINE i32x16 to_int(f32x16 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
VLLM_INLINE f32x16 to_float(i32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
VLLM_INLINE f32x16 exponent_of_two(i32x16 i) {
  const __m256i bias = _mm256_set1_epi32(127);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(i.lo, bias), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(i.hi, bias), 23))};
}

VLLM_INLINE f32x16 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
VLLM_INLINE f32x16 load_u8(const uint8_t* p) {
  const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(sixteen)),
          _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(sixteen, 8)))};
}
VLLM_INLINE f32x16 load_s8(const int8_t* p) {
  const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(sixteen)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(sixteen, 8)))};
}
// Sign, exponent and mantissa, moved to where half precision has them.
VLLM_INLINE f32x16 load_f8(const uint8_t* p) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<int16_t>(0xbf80)));
  return {_mm256_cvtph_ps(_mm256_castsi256_si128(half)), _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1))};
}
VLLM_INLINE void store_int8(int8_t* p, i32x16 a) {
  const __m256i mixed = _mm256_permute4x64_epi64(_mm256_packs_epi32(a.lo, a.hi), 0xd8);
  const __m128i packed = _mm_packs_epi16(_mm256_castsi256_si128(mixed), _mm256_extracti128_si256(mixed, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}

VLLM_INLINE __m256i round_to_bf16(__m256 a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}
VLLM_INLINE void store_bf16(uint16_t* p, f32x16 a) {
  const __m256i packed = _mm256_packus_epi32(round_to_bf16(a.lo), round_to_bf16(a.hi));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

VLLM_INLINE units load_units(const uint32_t* p) { return {load_256(p), load_256(p + 8)}; }
VLLM_INLINE units broadcast_unit(const uint32_t* p) {
  const __m256i all = _mm256_set1_epi32(static_cast<int>(*p));
  return {all, all};
}
VLLM_INLINE f32x16 as_float(units a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
VLLM_INLINE __m256 even_bf16(__m256i a) { return _mm256_castsi256_ps(_mm256_slli_epi32(a, 16)); }
VLLM_INLINE __m256 odd_bf16(__m256i a) {
  return _mm256_castsi256_ps(_mm256_and_si256(a, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}
VLLM_INLINE __m256 dot_bf16(__m256 acc, __m256i a, __m256i b) {
  return _mm256_fmadd_ps(odd_bf16(a), odd_bf16(b), _mm256_fmadd_ps(even_bf16(a), even_bf16(b), acc));
}
VLLM_INLINE f32x16 dot_bf16(f32x16 acc, units a, units b) {
  return {dot_bf16(acc.lo, a.lo, b.lo), dot_bf16(acc.hi, a.hi, b.hi)};
}

VLLM_INLINE bytes load_bytes(const uint8_t* p) { return {load_256(p), load_256(p + 32)}; }
VLLM_INLINE bytes broadcast_bytes(const int8_t* p) {
  const __m256i all = _mm256_set1_epi32(*reinterpret_cast<const FourBytes*>(p));
  return {all, all};
}
VLLM_INLINE bytes low_nibbles(bytes a) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(a.lo, mask), _mm256_and_si256(a.hi, mask)};
}
VLLM_INLINE bytes high_nibbles(bytes a) {
  return low_nibbles({_mm256_srli_epi16(a.lo, 4), _mm256_srli_epi16(a.hi, 4)});
}

// Codes counted from 128, with their magnitudes: |c - 128| * |x| is at most 128 * 127, so that two products side by side
// fit into the 16 bits that vpmaddubsw has for them.
struct codes {
  bytes centred, magnitude;
};
VLLM_INLINE codes load_codes(const uint8_t* p) {
  const bytes raw = load_bytes(p);
  const __m256i middle = _mm256_set1_epi8(-128);
  const bytes centred = {_mm256_xor_si256(raw.lo, middle), _mm256_xor_si256(raw.hi, middle)};
  return {centred, {_mm256_abs_epi8(centred.lo), _mm256_abs_epi8(centred.hi)}};
}
VLLM_INLINE __m256i add_pairs(__m256i shorts) { return _mm256_madd_epi16(shorts, _mm256_set1_epi16(1)); }
// Makes the compiler finish a sum before it begins the next product; else it forms all products of a group first, and has
// to keep them in memory.
template <class Sums>
VLLM_INLINE Sums in_turn(Sums sums) {
  asm("" : "+x"(sums.lo), "+x"(sums.hi));
  return sums;
}

VLLM_INLINE i32x16 begin_int8(int32_t) { return int_zeros(); }
VLLM_INLINE i32x16 dot_int8(i32x16 acc, codes c, bytes s) {
  const __m256i lo = _mm256_maddubs_epi16(c.magnitude.lo, _mm256_sign_epi8(s.lo, c.centred.lo));
  const __m256i hi = _mm256_maddubs_epi16(c.magnitude.hi, _mm256_sign_epi8(s.hi, c.centred.hi));
  return in_turn(add(acc, {add_pairs(lo), add_pairs(hi)}));
}

// Sums of pairs, in 16 bits: 15 * 127 * 2 * 8 steps is less than 2^15.
struct nibble_sums {
  __m256i lo, hi;
};
VLLM_INLINE nibble_sums begin_int4(int32_t) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
VLLM_INLINE nibble_sums dot_int4(nibble_sums acc, bytes u, bytes s) {
  return in_turn(nibble_sums{_mm256_add_epi16(acc.lo, _mm256_maddubs_epi16(u.lo, s.lo)),
                             _mm256_add_epi16(acc.hi, _mm256_maddubs_epi16(u.hi, s.hi))});
}
VLLM_INLINE i32x16 end_int4(nibble_sums acc, int32_t start) {
  return add(broadcast(start), {add_pairs(acc.lo), add_pairs(acc.hi)});
}

VLLM_INLINE void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

}  // namespace vllm::VLLM_ISA
