// One forward as it arrives: vllm/targets/cpu/step.py's Step and what to do with the logits.
#pragma once

#include <cstdint>

#include "runtime/sampler.h"

namespace vllm {

// Pointers into the caller's arrays, which outlive the call. num_prompt_logprobs: a row's entry, -1 if none.
// selected_row: where a token is sampled, its entry in the SamplingRows, of which there are num_entries; else its row.
struct Step {
  int num_tokens;
  int num_rows;
  int num_selected;
  int table_width;
  const int32_t* token_ids;
  const int32_t* positions;
  const int32_t* slots;
  const int32_t* row_start;
  const int32_t* context_len;
  const int32_t* block_table;
  const int32_t* selected;
  const int32_t* selected_row;
  const int32_t* given_token;
  const int32_t* num_prompt_logprobs;
  int num_entries;
};

struct StepLimits {
  int max_tokens;
  int num_embeddings;
  int vocab;
  int num_blocks;
  int block_size;
  int max_context;
};

// Throws std::invalid_argument, saying what is out of range, for a step that would read or write where it must not.
void check_step(const Step& step, const StepLimits& limits);

// Entry i of each belongs to selected position i; null members are not wanted. logits: what the program's last op reads
// (or its result, if that op is not `sample`), [selected or tokens, width].
struct Outputs {
  int32_t* tokens;
  LogprobRows logprobs;
  float* logits;
};

}  // namespace vllm
