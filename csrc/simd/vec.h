// The vector vocabulary that every kernel is written in; one implementation per instruction set.
//
// A translation unit of kernels defines VLLM_ISA (a namespace) and is compiled with the flags of that instruction set.
// All names live in vllm::VLLM_ISA, so that code built for one set is never linked into another. A vector has 16 lanes
// of 32 bits whatever the registers are: one on AVX-512, two on AVX2, four on SSE.
//
//   f32x16, i32x16       floats, integers
//   units                32 bits a lane, holding one float or a pair of bfloat16 (the even element in the low half)
//   bytes                32 bits a lane, holding four 8-bit numbers
//
//   zeros, broadcast, load, store          [, n]: only the first n lanes; the others load as 0 and are not stored
//   add, sub, mul, div, max, min           fma(a, b, c) = a * b + c
//   sum, largest                           across lanes, in a fixed order
//   to_int (nearest, ties to even), to_float, exponent_of_two (2^i for -126 <= i <= 127)
//   ge_mask(a, b), gt_mask(a, b)           bit i: a[i] >= b[i]
//   select(mask, a, b)                     bit set: a, else b
//   load_f16, load_u8, load_s8             16 half-precision, unsigned or signed 8-bit numbers
//   load_f8                                16 numbers of 8-bit floating point (e4m3), times 2^-8; exact, NaN reads as 480
//   store_bf16, store_int8, store_f8       round (ties to even), truncate, or round and saturate 16 numbers side by side
//   load_units, broadcast_unit             dot_bf16(acc, a, b): acc + a.even * b.even + a.odd * b.odd
//   load_bytes, broadcast_bytes            low_nibbles, high_nibbles: of every byte, as bytes
//
// kFloatRows, kInt8Rows, kInt4Rows: most rows, and kColumns: vectors beside each other, of a block whose accumulators stay
// in registers.
//
// Dot products of four bytes a lane, unsigned u counted from `zero` times signed s between -127 and 127. The caller gives
// start = -zero * (sum of all s), and the set of instructions uses it where it suits it best, or not at all:
//   codes load_codes, begin_int8(start)    dot_int8(acc, u, s): u of 8 bits, counted from 128
//   nibble_sums begin_int4(start)          dot_int4(acc, u, s): u below 16, at most 8 times; then end_int4(acc, start)
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/types.h"

#ifndef VLLM_ISA
#error "VLLM_ISA must name the namespace of this instruction set"
#endif

// Before a loop whose count is known: arrays of vectors live in registers only if every index is a constant.
#define VLLM_UNROLL _Pragma("GCC unroll 16")
#define VLLM_INLINE static inline __attribute__((always_inline))

namespace vllm::VLLM_ISA {
// Four bytes read as one number, whatever they are and wherever they lie.
using FourBytes [[gnu::may_alias, gnu::aligned(1)]] = int32_t;
}  // namespace vllm::VLLM_ISA

#if defined(__AVX512BW__)
#include "simd/avx512.h"
#elif defined(__AVX2__)
#include "simd/avx2.h"
#else
#include "simd/portable.h"
#endif

#include "simd/math.h"
