// What the machine can do at best: reading memory, and dot products out of registers. For benchmarks.
#pragma once

#include <type_traits>

#include "kernels/args.h"
#include "simd/vec.h"

namespace vllm::VLLM_ISA {

// Items: lines of 64 bytes.
void probe_read(ProbeArgs& args, int begin, int end) {
  f32x16 total = zeros();
  const uint32_t* p = args.memory + static_cast<ptrdiff_t>(begin) * kLanes;
  for (int i = begin; i + 8 <= end; i += 8, p += 8 * kLanes) {
    prefetch(p + 64 * kLanes);
    for (int j = 0; j < 8; ++j) total = max(total, as_float(load_units(p + j * kLanes)));
  }
  args.result = largest(total);
}

// Items: rounds of 16 chains of dot products, each a vector long.
void probe_dot_bf16(ProbeArgs& args, int begin, int end) {
  f32x16 acc[16];
  for (f32x16& a : acc) a = zeros();
  const units x = load_units(args.memory), y = load_units(args.memory + kLanes);
  for (int i = begin; i < end; ++i) VLLM_UNROLL for (int j = 0; j < 16; ++j) acc[j] = dot_bf16(acc[j], x, y);
  for (int j = 1; j < 16; ++j) acc[0] = add(acc[0], acc[j]);
  args.result = sum(acc[0]);
}

// Items: rounds of 48 dot products, each a vector long; of 4-bit numbers, which some sets of instructions are faster with.
// Where sums are kept in halves, no two products are the same, or the compiler would find that out.
void probe_dot_int8(ProbeArgs& args, int begin, int end) {
  const auto* memory = reinterpret_cast<const uint8_t*>(args.memory);
  const bytes u = low_nibbles(load_bytes(memory));
  i32x16 total = int_zeros();
  if constexpr (std::is_same_v<nibble_sums, i32x16>) {
    const bytes s = load_bytes(memory + 64);
    nibble_sums acc[16];
    for (nibble_sums& a : acc) a = begin_int4(0);
    for (int i = begin; i < end; ++i) VLLM_UNROLL for (int step = 0; step < 3; ++step)
        VLLM_UNROLL for (int j = 0; j < 16; ++j) acc[j] = dot_int4(acc[j], u, s);
    for (const nibble_sums& a : acc) total = add(total, end_int4(a, 0));
  } else {
    for (int i = begin; i < end; ++i) {
      asm volatile("" ::: "memory");
      nibble_sums acc[6];
      VLLM_UNROLL for (int j = 0; j < 6; ++j) acc[j] = begin_int4(0);
      VLLM_UNROLL for (int step = 0; step < 8; ++step) VLLM_UNROLL for (int j = 0; j < 6; ++j)
          acc[j] = dot_int4(acc[j], u, load_bytes(memory + 64 * (6 * step + j)));
      VLLM_UNROLL for (int j = 0; j < 6; ++j) total = add(total, end_int4(acc[j], 0));
    }
  }
  args.result = static_cast<float>(sum(total));
}

}  // namespace vllm::VLLM_ISA
