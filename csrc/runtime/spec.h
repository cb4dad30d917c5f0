// What Python hands over: packed weights by name, and programs as lists of ops (vllm/targets/cpu/plan.py writes them).
//
// It comes out of files, and nothing in it is believed: Model checks weights, OpReader checks ops, before anything runs.
#pragma once

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/types.h"

namespace vllm {

// An index of weights or a program that cannot be run. The text says which part of it is at fault, and why.
struct Malformed : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

// Where a weight lies in the file. Formats: "vector" (float32, padded with 0 to kTile) and those of format_of.
struct WeightSpec {
  std::string format;
  std::vector<int> shape;
  size_t offset;
  size_t num_bytes;
};

// float32 [rows, width] in the arena, `offset` bytes from its start; rows are tokens or selected positions.
struct BufferSpec {
  size_t offset;
  int width;
  bool samples;
};

// weights: name by role.
struct OpSpec {
  std::string kind;
  std::vector<BufferSpec> inputs;
  BufferSpec output;
  std::map<std::string, std::string> weights;
  std::map<std::string, double> attrs;
};

// arena_bytes: what all buffers lie in.
struct ProgramSpec {
  int max_tokens;
  int max_samples;
  size_t arena_bytes;
  std::vector<OpSpec> ops;
};

}  // namespace vllm
