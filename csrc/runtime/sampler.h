// Sampling and log-probabilities of one row of logits. The definition is vllm/sample/host.py: same steps, same order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/table.h"

namespace vllm {

// A parameter with one value per row: its name and type in vllm/sample/table.py.
struct SamplingColumn {
  enum Type { kFloat32, kInt32, kUint64 };
  const char* name;
  Type type;
};

// The parameters that sampling reads; their one list stands in sampler.cpp.
std::span<const SamplingColumn> sampling_columns();

// SamplingInput (vllm/sample/arrays.py), field by field; strides count elements.
struct SamplingRows {
  static constexpr size_t kMaxColumns = 16;
  const void* columns[kMaxColumns];  // values of sampling_columns(), in that order
  const int32_t* position;
  const int32_t* history;
  ptrdiff_t history_stride;
  const int32_t* history_line;
  const int32_t* num_prompt_tokens;
  const int32_t* bias_offsets;
  const int32_t* bias_ids;
  const float* bias_values;
  const int32_t* mask_index;
  const uint32_t* masks;
  ptrdiff_t mask_words;
  const int32_t* num_logprobs;
  const int32_t* logprob_ids_offsets;
  const int32_t* logprob_ids;
  // BadWords; null if no row has any.
  const int32_t* word_rows;
  const int32_t* word_offsets;
  const int32_t* word_ids;
};

// LogprobRows (vllm/sample/arrays.py); `stride` is its K.
struct LogprobRows {
  int32_t* token_id;
  float* logprob;
  int32_t* rank;
  int32_t* count;
  int32_t* top_ids;
  float* top_logprobs;
  ptrdiff_t stride;
};

// What is sampled from logits that are not all finite: NaN or an infinity means damaged weights, or an overflow.
inline constexpr int32_t kNoToken = -1;
// The count of log-probabilities of such logits: none, and not because none were asked for.
inline constexpr int32_t kNoLogprobs = -1;

bool all_finite(const float* logits, int vocab);

// One thread's sampler: holds nothing but a way to the kernels and scratch of `scratch_bytes(vocab)`.
class Sampler {
 public:
  static size_t scratch_bytes(int vocab);

  Sampler(const KernelTable& kernels, int vocab, uint8_t* scratch);

  // The next token for row `row`, of finite logits. default_top_k: what top_k 0 means; 0: the whole vocabulary.
  int sample(const float* logits, const SamplingRows& rows, int row, int default_top_k) const;

  // Writes entry `entry`: the log-probability and rank of `token`, the `num_top` most likely, then the `named` ones.
  void report(const float* logits, int token, int num_top, const int32_t* named, int num_named, const LogprobRows& out,
              int entry) const;

 private:
  float block_maxima(const float* logits) const;
  int greatest(const float* logits) const;
  void process(const float* logits, const SamplingRows& rows, int row) const;
  void forbid_bad_words(const SamplingRows& rows, int row) const;
  void penalize(const SamplingRows& rows, int row) const;
  int draw(const float* scaled, const SamplingRows& rows, int row, int default_top_k) const;
  int most_likely(const float* logits, int count, float bound) const;

  const KernelTable& kernels_;
  int vocab_;
  float* processed_;  // [vocab]
  float* weights_;    // [vocab]
  uint64_t* keys_;    // [vocab]
  int32_t* ids_;      // [vocab]
  int32_t* counts_;   // [vocab]
  float* maxima_;     // [blocks]
  float* ordered_;    // [blocks]
};

}  // namespace vllm
