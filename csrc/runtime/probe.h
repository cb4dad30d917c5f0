// The machine's limits, measured: what benchmarks hold results against.
#pragma once

#include <string>
#include <vector>

namespace vllm {

struct Limits {
  double read_bytes;  // a second, from memory, by all threads
  double bf16_flops;  // multiplications and additions a second
  double int8_ops;
};

// Takes some tens of milliseconds. Throws like find_isa.
Limits measure_limits(const std::vector<int>& cpus, const std::string& isa);

}  // namespace vllm
