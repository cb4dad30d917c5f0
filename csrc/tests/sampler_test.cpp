#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "runtime/isa.h"
#include "tests/test.h"

namespace vllm {
namespace {

// One row of parameters that change nothing; members are set by the test.
struct Row {
  float temperature = 1, top_p = 1, min_p = 0, repetition = 1, presence = 0, frequency = 0;
  int32_t top_k = 0, position = 1, line = 0, num_prompt = 0, mask_index = -1, num_logprobs = -1;
  uint64_t seed = 0;
  std::vector<int32_t> history = std::vector<int32_t>(8, 0);
  int32_t offsets[2] = {0, 0};

  SamplingRows view() const {
    return {.columns = {&presence, &frequency, &repetition, &temperature, &top_p, &top_k, &min_p, &seed},
            .position = &position,
            .history = history.data(),
            .history_stride = 8,
            .history_line = &line,
            .num_prompt_tokens = &num_prompt,
            .bias_offsets = offsets,
            .bias_ids = nullptr,
            .bias_values = nullptr,
            .mask_index = &mask_index,
            .masks = nullptr,
            .mask_words = 0,
            .num_logprobs = &num_logprobs,
            .logprob_ids_offsets = offsets,
            .logprob_ids = nullptr,
            .word_rows = nullptr,
            .word_offsets = nullptr,
            .word_ids = nullptr};
  }
};

TEST(top_k_of_one_is_the_greatest_with_the_lowest_id) {
  std::mt19937 random(1);
  for (const Isa& isa : all_isas()) {
    if (!isa.supported()) continue;
    for (int vocab : {1, 15, 64, 65, 1000}) {
      std::vector<uint8_t> scratch(Sampler::scratch_bytes(vocab));
      const Sampler sampler(*isa.kernels, vocab, scratch.data());
      std::vector<float> logits(static_cast<size_t>(vocab));
      for (float& logit : logits) logit = static_cast<float>(random() % 7);
      const auto expected = static_cast<int>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      Row row;
      row.top_k = 1;
      CHECK(sampler.sample(logits.data(), row.view(), 0, 0) == expected);
      row.temperature = 0;
      CHECK(sampler.sample(logits.data(), row.view(), 0, 0) == expected);
    }
  }
}

TEST(logprobs_are_a_sorted_log_softmax) {
  const int vocab = 517;
  std::mt19937 random(2);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = static_cast<float>(random() % 1000) / 100;
  double total = 0;
  for (float logit : logits) total += std::exp(static_cast<double>(logit));
  std::vector<int32_t> order(vocab);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)]; });
  for (const Isa& isa : all_isas()) {
    if (!isa.supported()) continue;
    std::vector<uint8_t> scratch(Sampler::scratch_bytes(vocab));
    const Sampler sampler(*isa.kernels, vocab, scratch.data());
    for (int num_top : {0, 1, 20, vocab}) {
      int32_t token, rank, count;
      float logprob;
      const int32_t named[] = {3, 500};
      std::vector<int32_t> ids(vocab + 2);
      std::vector<float> logprobs(vocab + 2);
      sampler.report(logits.data(), 7, num_top, named, 2,
                     {&token, &logprob, &rank, &count, ids.data(), logprobs.data(), vocab + 2}, 0);
      CHECK(token == 7 && count == num_top + 2);
      CHECK(rank == 1 + std::count_if(logits.begin(), logits.end(), [&](float logit) { return logit > logits[7]; }));
      CHECK(std::abs(logprob - (logits[7] - std::log(total))) < 1e-4);
      CHECK(std::equal(order.begin(), order.begin() + num_top, ids.begin()));
      CHECK(ids[static_cast<size_t>(num_top)] == 3 && ids[static_cast<size_t>(num_top) + 1] == 500);
    }
  }
}

TEST(logits_are_finite_or_not) {  // M4
  const float infinity = std::numeric_limits<float>::infinity(), greatest = std::numeric_limits<float>::max();
  for (const int vocab : {1, 7, 64, 517}) {
    std::vector<float> logits(static_cast<size_t>(vocab), -greatest);
    logits.back() = greatest;
    CHECK(all_finite(logits.data(), vocab));
    for (const float bad : {std::nanf(""), -std::nanf("1"), infinity, -infinity})
      for (size_t i = 0; i < logits.size(); ++i) {
        std::vector<float> damaged = logits;
        damaged[i] = bad;
        CHECK(!all_finite(damaged.data(), vocab));
      }
  }
}

}  // namespace
}  // namespace vllm
