// Speculative steps against plain decoding, one token a step: whatever drafts, the tokens are the same.
#include "runtime/speculator.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <stdexcept>

#include "tests/small_decoder.h"

namespace vllm::test {
namespace {

constexpr int kRows = 2, kMaxDrafts = 4, kEntries = kRows * (kMaxDrafts + 1), kLength = 3 * kBlock;
using Ids = std::vector<int32_t>;
// Rows lie in blocks that neither follow each other nor belong together.
const Ids kTable = {3, 0, 4, 1, 5, 2};

Model make_model(const Weights& weights) {
  const std::string isa = std::find_if(all_isas().begin(), all_isas().end(), [](const Isa& each) {
                            return each.supported();
                          })->name;
  return Model({weights.path,
                weights.specs,
                {KvType::kF32, 1, kKvHeads, kHeadDim, 6, kBlock},
                kVocab,
                kLength,
                std::make_shared<ThreadPool>(std::vector<int>(2, -1)),
                isa,
                nullptr});
}

// The texts of the rows, and sampling entries behind them.
struct Texts {
  std::vector<int32_t> history = Ids(kRows * kLength, 0);
  Ids known = Ids(kRows, 0);
  float temperature;

  std::vector<float> temperatures, ones, zeros;
  std::vector<uint64_t> seeds;
  Ids positions, lines, nothing, minus_one, prompt_lens;

  Texts(const std::vector<Ids>& prompts, float heat) : temperature(heat) {
    for (size_t row = 0; row < prompts.size(); ++row) {
      std::copy(prompts[row].begin(), prompts[row].end(), history.begin() + static_cast<ptrdiff_t>(row * kLength));
      known[row] = static_cast<int32_t>(prompts[row].size());
    }
  }
  int32_t* text(int row) { return history.data() + row * kLength; }
  Ids taken(int row, int count) { return {text(row), text(row) + count}; }

  // `per_row[r]` entries of row r, at the positions behind its known tokens.
  SamplingRows entries(const Ids& per_row) {
    positions.clear();
    lines.clear();
    for (int row = 0; row < kRows; ++row)
      for (int place = 0; place < per_row[static_cast<size_t>(row)]; ++place) {
        positions.push_back(known[static_cast<size_t>(row)] + place);
        lines.push_back(row);
      }
    const size_t count = positions.size();
    temperatures.assign(count, temperature);
    ones.assign(count, 1.0f);
    zeros.assign(count, 0.0f);
    nothing.assign(count + 1, 0);
    minus_one.assign(count, -1);
    prompt_lens.assign(count, 1);
    seeds.clear();
    for (int32_t line : lines) seeds.push_back(static_cast<uint64_t>(11 + line));
    SamplingRows rows{};
    size_t index = 0;
    for (const SamplingColumn& column : sampling_columns()) {
      const std::string name = column.name;
      const void*& values = rows.columns[index++];
      values = zeros.data();
      if (name == "temperature") values = temperatures.data();
      if (name == "top_k") values = nothing.data();
      if (name == "top_p" || name == "repetition_penalty") values = ones.data();
      if (name == "seed") values = seeds.data();
    }
    rows.bias_offsets = rows.logprob_ids_offsets = nothing.data();
    rows.position = positions.data();
    rows.history = history.data();
    rows.history_stride = kLength;
    rows.history_line = lines.data();
    rows.num_prompt_tokens = prompt_lens.data();
    rows.mask_index = rows.num_logprobs = minus_one.data();
    return rows;
  }
};

// Tokens first .. last - 1 of every row in one step; the last ones are sampled behind if `sampled` is given.
void forward(Model& model, int program, Texts& texts, const Ids& first, int32_t* sampled) {
  Ids tokens, positions, slots, row_start = {0}, selected, selected_row, given;
  for (int row = 0; row < kRows; ++row) {
    const int last = texts.known[static_cast<size_t>(row)] - (sampled ? 0 : 1);
    for (int p = first[static_cast<size_t>(row)]; p < last; ++p) {
      tokens.push_back(texts.text(row)[p]);
      positions.push_back(p);
      slots.push_back(kTable[static_cast<size_t>(row * 3 + p / kBlock)] * kBlock + p % kBlock);
    }
    row_start.push_back(static_cast<int32_t>(tokens.size()));
    if (sampled) {
      selected.push_back(static_cast<int32_t>(tokens.size()) - 1);
      selected_row.push_back(row);
      given.push_back(-1);
    }
  }
  Ids context = texts.known;
  if (!sampled)
    for (int32_t& length : context) --length;
  const Step step{static_cast<int>(tokens.size()), kRows,          static_cast<int>(selected.size()), 3, tokens.data(),
                  positions.data(),                slots.data(),   row_start.data(),                  context.data(),
                  kTable.data(),                   selected.data(), selected_row.data(),              given.data(),
                  nullptr,                         kRows};
  Outputs outputs{};
  outputs.tokens = sampled;
  model.run(program, step, texts.entries({1, 1}), outputs);
}

const std::vector<Ids> kPrompts = {{5, 9, 5, 9, 5, 9, 5}, {60, 1, 2, 3, 4, 60, 1}};

std::vector<Ids> decode_plainly(const Weights& weights, float temperature, int count) {
  Model model = make_model(weights);
  const int program = model.add_program(decoder(64, kEntries));
  Texts texts(kPrompts, temperature);
  forward(model, program, texts, {0, 0}, nullptr);
  for (int i = 0; i < count; ++i) {
    int32_t sampled[kRows];
    Ids last = texts.known;
    for (int32_t& length : last) --length;
    forward(model, program, texts, last, sampled);
    for (int row = 0; row < kRows; ++row) texts.text(row)[texts.known[static_cast<size_t>(row)]++] = sampled[row];
  }
  return {texts.taken(0, texts.known[0]), texts.taken(1, texts.known[1])};
}

struct Drafted {
  std::vector<Ids> texts;
  int drafted = 0, accepted = 0;
};

// Rows draft 0 to kMaxDrafts tokens in turn, not the same number. draft: null looks drafts up.
Drafted decode_with_drafts(const Weights& weights, const Weights* draft_weights, bool keeps, float temperature, int count) {
  Model target = make_model(weights);
  const int program = target.add_program(decoder(64, kEntries));
  Texts texts(kPrompts, temperature);
  forward(target, program, texts, {0, 0}, nullptr);
  Model draft = make_model(draft_weights ? *draft_weights : weights);
  const int draft_program = draft.add_program(decoder(8, kRows));
  Speculator speculator(target, {draft_weights ? &draft : nullptr, draft_program, 1, 3, keeps}, 8, kRows, kMaxDrafts);
  std::vector<uint8_t> filled(6 * kBlock, 0);
  Drafted result;
  const int end = static_cast<int>(kPrompts[0].size()) + count;
  for (int turn = 0; *std::min_element(texts.known.begin(), texts.known.end()) < end; ++turn) {
    Ids drafts = {turn % (kMaxDrafts + 1), (turn * 2 + 1) % (kMaxDrafts + 1)};
    const SamplingRows sampling = texts.entries({drafts[0] + 1, drafts[1] + 1});
    const SpeculativeStep step{kRows,           3, texts.known.data(), kTable.data(), drafts.data(), drafts[0] + drafts[1] + 2,
                               texts.history.data(), draft_weights ? filled.data() : nullptr};
    int32_t tokens[kRows][kMaxDrafts + 1], num_new[kRows], num_drafted[kRows];
    speculator.run(program, step, sampling, {tokens[0], kMaxDrafts + 1, num_new, num_drafted, {}});
    for (int row = 0; row < kRows; ++row) {
      CHECK(num_drafted[row] <= drafts[static_cast<size_t>(row)]);
      CHECK(num_new[row] >= 1 && num_new[row] <= num_drafted[row] + 1);
      result.drafted += num_drafted[row];
      result.accepted += num_new[row] - 1;
      for (int i = 0; i < num_new[row]; ++i)
        texts.text(row)[texts.known[static_cast<size_t>(row)]++] = tokens[row][i];
    }
  }
  result.texts = {texts.taken(0, end), texts.taken(1, end)};
  return result;
}

TEST(drafts_change_no_token) {
  const Weights weights("f32"), stranger("f32", 8), rounded("int8_group");
  for (const float temperature : {0.0f, 1.0f}) {
    const std::vector<Ids> expected = decode_plainly(weights, temperature, 40);
    const Drafted looked_up = decode_with_drafts(weights, nullptr, true, temperature, 40);
    CHECK(looked_up.texts == expected);
    for (const bool keeps : {true, false}) {
      const Drafted itself = decode_with_drafts(weights, &weights, keeps, temperature, 40);
      CHECK(itself.texts == expected);
      CHECK(itself.drafted > 20 && itself.accepted == itself.drafted);
      CHECK(decode_with_drafts(weights, &stranger, keeps, temperature, 40).texts == expected);
      CHECK(decode_with_drafts(weights, &rounded, keeps, temperature, 40).texts == expected);
    }
  }
}

TEST(a_damaged_draft_drafts_nothing) {  // M4
  const Weights weights("f32"), damaged("f32");
  const WeightSpec& embed = damaged.specs.at("embed");
  const std::vector<float> nothing(embed.num_bytes / sizeof(float), std::nanf(""));
  std::fstream file(damaged.path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(embed.offset));
  file.write(reinterpret_cast<const char*>(nothing.data()), static_cast<std::streamsize>(embed.num_bytes));
  file.close();
  const Drafted drafted = decode_with_drafts(weights, &damaged, true, 0.0f, 12);
  CHECK(drafted.texts == decode_plainly(weights, 0.0f, 12) && drafted.drafted == 0);
}

TEST(malformed_speculative_steps_are_refused) {
  const Weights weights("f32");
  Model target = make_model(weights);
  const int program = target.add_program(decoder(64, kEntries));
  Speculator speculator(target, {nullptr, 0, 1, 3, true}, 0, kRows, kMaxDrafts);
  Texts texts(kPrompts, 0.0f);
  int32_t tokens[kRows * (kMaxDrafts + 1)], num_new[kRows], num_drafted[kRows];
  const auto refused = [&](const Ids& known, const Ids& table, const Ids& drafts, int num_entries) {
    const SamplingRows sampling = texts.entries({3, 3});
    const SpeculativeStep step{kRows,         3,           known.data(),         table.data(),
                               drafts.data(), num_entries, texts.history.data(), nullptr};
    try {
      speculator.run(program, step, sampling, {tokens, kMaxDrafts + 1, num_new, num_drafted, {}});
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  CHECK(refused({0, 7}, kTable, {2, 2}, 6));
  CHECK(refused({7, kLength}, kTable, {2, 2}, 6));
  CHECK(refused({7, 7}, {6, 0, 4, 1, 5, 2}, {2, 2}, 6));
  CHECK(refused({7, 7}, kTable, {2, -1}, 6));
  CHECK(refused({7, 7}, kTable, {2, 3}, 6));
  CHECK(refused({7, 7}, kTable, {2, 1}, 6));
  CHECK(refused({7, 8}, kTable, {2, 2}, 6));
  CHECK(!refused({7, 7}, kTable, {2, 2}, 6));
}

}  // namespace
}  // namespace vllm::test
