// What the machine can do at best: reading memory, and dot products out of registers. For benchmarks.
#pragma once

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

void probe_dot_int8(ProbeArgs& args, int begin, int end) {
  i32x16 acc[16];
  for (i32x16& a : acc) a = int_zeros();
  const auto* memory = reinterpret_cast<const uint8_t*>(args.memory);
  const bytes x = load_bytes(memory), y = load_bytes(memory + 64);
  for (int i = begin; i < end; ++i) VLLM_UNROLL for (int j = 0; j < 16; ++j) acc[j] = dot_int8(acc[j], x, y);
  for (int j = 1; j < 16; ++j) acc[0] = add(acc[0], acc[j]);
  args.result = static_cast<float>(sum(acc[0]));
}

}  // namespace vllm::VLLM_ISA
