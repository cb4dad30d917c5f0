// A decoder of one layer with weights of any format, for tests: a file of weights, and the program that runs it.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "runtime/model.h"
#include "tests/test.h"

namespace vllm::test {

inline constexpr int kVocab = 70, kDim = 64, kHeads = 4, kKvHeads = 2, kHeadDim = 16, kInner = 96, kBlock = 32;
// Tokens that `drafter` can draft: every third one.
inline constexpr int kDraftVocab = 23;

inline size_t matrix_bytes(const std::string& format, int out, int in) {
  const auto tiles = static_cast<size_t>(ceil_div(out, kTile)), groups = static_cast<size_t>(ceil_div(in, kGroup));
  const size_t plane = groups * kTile * 2, codes = groups * kGroup * kTile;
  if (format == "f32") return tiles * static_cast<size_t>(in) * kTile * 4;
  if (format == "bf16") return tiles * static_cast<size_t>(round_up(in, 2)) * kTile * 2;
  if (format == "int8") return tiles * (kTile * 4 + codes);
  if (format == "int8_group") return tiles * (plane + codes);
  if (format == "f8") return tiles * (kTile * 4 + static_cast<size_t>(in) * kTile);
  if (format == "f8_block")
    return tiles * (static_cast<size_t>(ceil_div(in, kF8Group)) * kTile * 4 + static_cast<size_t>(in) * kTile);
  if (format == "q4_k")
    return tiles * (static_cast<size_t>(ceil_div(in, kGroup * kSuperGroups)) * kTile * 4 + plane + codes / 2);
  return tiles * (plane * (format == "q4_min" ? 2 : 1) + codes / 2);
}

// A file of weights whose every bit pattern is a small finite number in the format that reads it.
class Weights {
 public:
  explicit Weights(const std::string& format, unsigned seed = 7) : format_(format), random_(seed) {
    char name[] = "/tmp/vllm-weights-XXXXXX";
    const int file = mkstemp(name);
    CHECK(file >= 0);
    path = name;
    add_matrix("embed", kVocab, kDim);
    add_matrix("qkv", (kHeads + 2 * kKvHeads) * kHeadDim, kDim);
    add_matrix("o", kDim, kHeads * kHeadDim);
    add_matrix("gate_up", 2 * kInner, kDim);
    add_matrix("down", kDim, kInner);
    add_vector("norm", kDim);
    add_vector("inv_freq", kHeadDim / 2);
    add_matrix("draft_head", kDraftVocab, kDim);
    add_ids("draft_ids", kDraftVocab);
    CHECK(write(file, data_.data(), data_.size()) == static_cast<ssize_t>(data_.size()));
    close(file);
  }
  ~Weights() { unlink(path.c_str()); }
  Weights(const Weights&) = delete;

  std::string path;
  std::map<std::string, WeightSpec> specs;

 private:
  void add_matrix(const std::string& name, int out, int in) {
    const size_t bytes = matrix_bytes(format_, out, in);
    const size_t offset = begin(name, format_, {out, in}, bytes);
    for (size_t i = 0; i < bytes; i += 2) {
      // 0x3x.. as halves are 0.1 to 1, as bfloat16 pairs or floats around 1e-9 to 1; bytes are any.
      const auto value =
          static_cast<uint16_t>(0x2c00 + random_() % 0x0800 + (format_ == "f32" || format_ == "bf16" ? 0x1000 : 0));
      std::memcpy(&data_[offset + i], &value, sizeof value);
    }
    if (format_ == "int8" || format_ == "f8" || format_ == "f8_block")
      for (size_t tile = 0; tile < bytes; tile += bytes / static_cast<size_t>(ceil_div(out, kTile)))
        for (size_t i = 0; i < kTile; ++i) {
          const float scale = 0.001f * static_cast<float>(i + 1);
          std::memcpy(&data_[offset + tile + 4 * i], &scale, sizeof scale);
        }
  }
  void add_vector(const std::string& name, int length) {
    const size_t padded = static_cast<size_t>(round_up(length, kTile));
    const size_t offset = begin(name, "vector", {length}, padded * sizeof(float));
    for (size_t i = 0; i < static_cast<size_t>(length); ++i) {
      const float value = 1.0f / static_cast<float>(i + 1);
      std::memcpy(&data_[offset + 4 * i], &value, sizeof value);
    }
  }
  void add_ids(const std::string& name, int count) {
    const size_t offset = begin(name, "vector", {count}, static_cast<size_t>(round_up(count, kTile)) * sizeof(float));
    for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
      const auto id = static_cast<float>(3 * i);
      std::memcpy(&data_[offset + 4 * i], &id, sizeof id);
    }
  }
  size_t begin(const std::string& name, const std::string& format, std::vector<int> shape, size_t bytes) {
    const size_t offset = align_up(data_.size(), 64);
    data_.resize(offset + bytes);
    specs[name] = {format, std::move(shape), offset, bytes};
    return offset;
  }

  std::string format_;
  std::vector<uint8_t> data_;
  std::mt19937 random_;
};

inline std::map<std::string, double> heads_of(std::map<std::string, double> attrs) {
  attrs.insert({{"layer", 0}, {"num_heads", kHeads}, {"num_kv_heads", kKvHeads}, {"head_dim", kHeadDim}});
  return attrs;
}

// Buffers one after the other in an arena, each with room for 1024 columns.
struct Buffers {
  int max_tokens;
  size_t slot = 0;

  size_t slot_bytes() const { return 4096 * static_cast<size_t>(max_tokens); }
  BufferSpec next(int width, bool samples = false) {
    return {.offset = slot_bytes() * slot++, .width = width, .samples = samples};
  }
};

inline constexpr int kQkvWidth = (kHeads + 2 * kKvHeads) * kHeadDim;

// max_samples: most positions that are sampled behind. keeps: rows of the residual stream go to the hidden cache.
inline ProgramSpec decoder(int max_tokens, int max_samples = 2, bool keeps = false) {
  Buffers buffers{max_tokens};
  const BufferSpec hidden = buffers.next(kDim), qkv = buffers.next(kQkvWidth),
                   attended = buffers.next(kHeads * kHeadDim), inner = buffers.next(kInner),
                   angles = buffers.next(kHeadDim), picked = buffers.next(kDim, true),
                   logits = buffers.next(kVocab, true);
  ProgramSpec spec{max_tokens, max_samples, buffers.slot * buffers.slot_bytes(), {}};
  spec.ops = {
      {"rotary_angles", {}, angles, {{"inv_freq", "inv_freq"}}, {{"attention_factor", 1}}},
      {"embed", {}, hidden, {{"weight", "embed"}}, {{"scale", 1}}},
      {"linear", {hidden}, qkv, {{"weight", "qkv"}, {"norm", "norm"}}, {{"eps", 1e-5}}},
      {"rope_kv", {qkv, angles}, qkv, {}, heads_of({{"rotary_dim", kHeadDim}, {"attention_factor", 1}})},
      {"attention", {qkv}, attended, {}, heads_of({{"scale", 0.25}, {"window", 0}})},
      {"linear", {attended}, hidden, {{"weight", "o"}}, {{"accumulate", 1}}},
      {"linear", {hidden}, inner, {{"weight", "gate_up"}, {"norm", "norm"}}, {{"eps", 1e-5}, {"silu_mul", 1}}},
      {"linear", {inner}, hidden, {{"weight", "down"}}, {{"accumulate", 1}}},
      {"select", {hidden}, picked, {}, {}},
      {"linear", {picked}, logits, {{"weight", "embed"}, {"norm", "norm"}}, {{"eps", 1e-5}}},
      {"sample", {logits}, logits, {}, {{"default_top_k", 0}}},
  };
  if (keeps) spec.ops.insert(spec.ops.end() - 3, {"keep", {hidden}, hidden, {}, {{"drafted", 0}}});
  return spec;
}

// A draft in the manner of EAGLE: recalls, keeps, and knows only some tokens. Nothing in it is fused.
inline ProgramSpec drafter(int max_tokens, int max_samples) {
  Buffers buffers{max_tokens};
  const BufferSpec embedded = buffers.next(kDim), recalled = buffers.next(kDim), hidden = buffers.next(kDim),
                   normed = buffers.next(kDim), qkv = buffers.next(kQkvWidth),
                   attended = buffers.next(kHeads * kHeadDim), gate_up = buffers.next(2 * kInner),
                   inner = buffers.next(kInner), angles = buffers.next(kHeadDim), picked = buffers.next(kDim, true),
                   known = buffers.next(kDraftVocab, true), logits = buffers.next(kVocab, true);
  ProgramSpec spec{max_tokens, max_samples, buffers.slot * buffers.slot_bytes(), {}};
  spec.ops = {
      {"rotary_angles", {}, angles, {{"inv_freq", "inv_freq"}}, {{"attention_factor", 1}}},
      {"embed", {}, embedded, {{"weight", "embed"}}, {{"scale", 1}}},
      {"recall", {}, recalled, {}, {}},
      {"linear", {embedded}, hidden, {{"weight", "o"}, {"bias", "norm"}}, {{"accumulate", 0}}},
      {"linear", {recalled}, hidden, {{"weight", "o"}}, {{"accumulate", 1}}},
      {"rms_norm", {hidden}, normed, {{"weight", "norm"}}, {{"eps", 1e-5}}},
      {"linear", {normed}, qkv, {{"weight", "qkv"}}, {}},
      {"rope_kv", {qkv, angles}, qkv, {}, heads_of({})},
      {"attention", {qkv}, attended, {}, heads_of({{"scale", 0.25}, {"window", 8}})},
      {"linear", {attended}, hidden, {{"weight", "o"}}, {{"accumulate", 1}}},
      {"linear", {hidden}, gate_up, {{"weight", "gate_up"}}, {}},
      {"silu_mul", {gate_up}, inner, {}, {}},
      {"linear", {inner}, hidden, {{"weight", "down"}}, {{"accumulate", 1}}},
      {"keep", {hidden}, hidden, {}, {{"drafted", 1}}},
      {"select", {hidden}, picked, {}, {}},
      {"linear", {picked}, known, {{"weight", "draft_head"}}, {}},
      {"expand", {known}, logits, {{"ids", "draft_ids"}}, {}},
      {"sample", {logits}, logits, {}, {{"default_top_k", 5}}},
  };
  return spec;
}

}  // namespace vllm::test
