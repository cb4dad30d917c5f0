// A small decoder with weights of every format: runs on every instruction set, with threads and without, to equal bits.
#include "runtime/model.h"

#include <cmath>

#include "tests/small_decoder.h"

namespace vllm::test {
namespace {

// Logits of every token of a sequence, computed in chunks of `chunk`.
std::vector<float> run(const Weights& weights, const std::string& isa, KvType kv, int threads,
                       const std::vector<int32_t>& tokens, int chunk) {
  Model model({weights.path,
               weights.specs,
               {kv, 1, kKvHeads, kHeadDim, 3, kBlock},
               kVocab,
               3 * kBlock,
               std::make_shared<ThreadPool>(std::vector<int>(static_cast<size_t>(threads), -1)),
               isa,
               nullptr});
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
}  // namespace vllm::test
