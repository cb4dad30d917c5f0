// What Python hands over: packed weights by name, and programs as lists of ops (vllm/targets/cpu/plan.py writes them).
#pragma once

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/types.h"

namespace vllm {

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

struct OpSpec {
  std::string kind;
  std::vector<BufferSpec> inputs;
  BufferSpec output;
  std::map<std::string, std::string> weights;
  std::map<std::string, double> attrs;

  const std::string& weight(const std::string& role) const {
    const auto found = weights.find(role);
    if (found == weights.end()) throw std::invalid_argument("op '" + kind + "' lacks its weight '" + role + "'");
    return found->second;
  }
  double attr(const std::string& name) const {
    const auto found = attrs.find(name);
    if (found == attrs.end()) throw std::invalid_argument("op '" + kind + "' lacks the attribute '" + name + "'");
    return found->second;
  }
  int integer(const std::string& name) const { return static_cast<int>(attr(name)); }
  float number(const std::string& name) const { return static_cast<float>(attr(name)); }
};

struct ProgramSpec {
  int max_tokens;
  int max_samples;
  size_t arena_bytes;
  std::vector<OpSpec> ops;
};

}  // namespace vllm
