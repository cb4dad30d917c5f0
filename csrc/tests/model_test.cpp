// A small decoder with weights of every format: runs on every instruction set, with threads and without, to equal bits.
#include "runtime/model.h"

#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <random>

#include "tests/test.h"

namespace vllm {
namespace {

constexpr int kVocab = 70, kDim = 64, kHeads = 4, kKvHeads = 2, kHeadDim = 16, kInner = 96, kBlock = 32;

size_t matrix_bytes(const std::string& format, int out, int in) {
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
  explicit Weights(const std::string& format) : format_(format) {
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
  size_t begin(const std::string& name, const std::string& format, std::vector<int> shape, size_t bytes) {
    const size_t offset = align_up(data_.size(), 64);
    data_.resize(offset + bytes);
    specs[name] = {format, std::move(shape), offset, bytes};
    return offset;
  }

  std::string format_;
  std::vector<uint8_t> data_;
  std::mt19937 random_{7};
};

ProgramSpec decoder(int max_tokens) {
  const size_t row = 4096;
  const auto buffer = [=](size_t slot, int width, bool samples = false) {
    return BufferSpec{slot * row * static_cast<size_t>(max_tokens), width, samples};
  };
  const int qkv_width = (kHeads + 2 * kKvHeads) * kHeadDim;
  const BufferSpec hidden = buffer(0, kDim), qkv = buffer(1, qkv_width), attended = buffer(2, kHeads * kHeadDim);
  const BufferSpec inner = buffer(3, kInner), angles = buffer(4, kHeadDim), picked = buffer(5, kDim, true),
                   logits = buffer(6, kVocab, true);
  const std::map<std::string, double> heads = {
      {"layer", 0}, {"num_heads", kHeads}, {"num_kv_heads", kKvHeads}, {"head_dim", kHeadDim}};
  auto attention = heads;
  attention.insert({{"scale", 0.25}, {"window", 0}});
  ProgramSpec spec{max_tokens, 2, 7 * row * static_cast<size_t>(max_tokens), {}};
  spec.ops = {
      {"rotary_angles", {}, angles, {{"inv_freq", "inv_freq"}}, {{"attention_factor", 1}}},
      {"embed", {}, hidden, {{"weight", "embed"}}, {{"scale", 1}}},
      {"linear", {hidden}, qkv, {{"weight", "qkv"}, {"norm", "norm"}}, {{"eps", 1e-5}}},
      {"rope_kv", {qkv, angles}, qkv, {}, heads},
      {"attention", {qkv}, attended, {}, attention},
      {"linear", {attended}, hidden, {{"weight", "o"}}, {{"accumulate", 1}}},
      {"linear", {hidden}, inner, {{"weight", "gate_up"}, {"norm", "norm"}}, {{"eps", 1e-5}, {"silu_mul", 1}}},
      {"linear", {inner}, hidden, {{"weight", "down"}}, {{"accumulate", 1}}},
      {"select", {hidden}, picked, {}, {}},
      {"linear", {picked}, logits, {{"weight", "embed"}, {"norm", "norm"}}, {{"eps", 1e-5}}},
      {"sample", {logits}, logits, {}, {{"default_top_k", 0}}},
  };
  return spec;
}

// Logits of every token of a sequence, computed in chunks of `chunk`.
std::vector<float> run(const Weights& weights, const std::string& isa, KvType kv, int threads,
                       const std::vector<int32_t>& tokens, int chunk) {
  Model model({weights.path,
               weights.specs,
               {kv, 1, kKvHeads, kHeadDim, 3, kBlock},
               kVocab,
               3 * kBlock,
               std::make_shared<ThreadPool>(std::vector<int>(static_cast<size_t>(threads), -1)),
               isa});
  const int program = model.add_program(decoder(64));
  const std::vector<int32_t> table = {2, 0, 1};
  std::vector<float> logits(tokens.size() * kVocab);
  for (int first = 0; first < static_cast<int>(tokens.size()); first += chunk) {
    const int count = std::min(chunk, static_cast<int>(tokens.size()) - first);
    std::vector<int32_t> positions, slots, selected, rows(static_cast<size_t>(count), 0),
        given(static_cast<size_t>(count), 0);
    for (int i = 0; i < count; ++i) {
      positions.push_back(first + i);
      slots.push_back(table[static_cast<size_t>((first + i) / kBlock)] * kBlock + (first + i) % kBlock);
      selected.push_back(i);
    }
    const int32_t row_start[] = {0, count}, context[] = {first + count};
    const Step step{count,
                    1,
                    count,
                    3,
                    &tokens[static_cast<size_t>(first)],
                    positions.data(),
                    slots.data(),
                    row_start,
                    context,
                    table.data(),
                    selected.data(),
                    rows.data(),
                    given.data(),
                    nullptr,
                    1};
    Outputs outputs{};
    outputs.logits = &logits[static_cast<size_t>(first) * kVocab];
    model.run(program, step, {}, outputs);
  }
  return logits;
}

TEST(chunks_and_threads_change_no_bit) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < 45; ++i) tokens.push_back(i * 31 % kVocab);
  for (const char* format : {"f32", "bf16", "int8", "int8_group", "q4", "q4_min", "q4_k", "f8", "f8_block"}) {
    const Weights weights(format);
    for (const Isa& isa : all_isas()) {
      if (!isa.supported()) continue;
      for (KvType kv : {KvType::kF32, KvType::kBf16, KvType::kF8, KvType::kInt8}) {
        const std::vector<float> expected = run(weights, isa.name, kv, 1, tokens, 45);
        for (float value : expected) CHECK(std::isfinite(value));
        CHECK(run(weights, isa.name, kv, 3, tokens, 45) == expected);
        CHECK(run(weights, isa.name, kv, 2, tokens, 1) == expected);
        CHECK(run(weights, isa.name, kv, 2, tokens, 17) == expected);
      }
    }
  }
}

}  // namespace
}  // namespace vllm
