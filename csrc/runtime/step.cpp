#include "runtime/step.h"

#include <stdexcept>
#include <string>

namespace vllm {
namespace {

void check_range(const char* what, const int32_t* values, int count, int limit) {
  for (int i = 0; i < count; ++i)
    if (values[i] < 0 || values[i] >= limit)
      throw std::invalid_argument(std::string(what) + " " + std::to_string(values[i]) +
                                  " is out of range: it must be at least 0 and below " + std::to_string(limit));
}

void check_row(const Step& step, const StepLimits& limits, int row) {
  const int begin = step.row_start[row], end = step.row_start[row + 1];
  if (begin > end || end > step.num_tokens)
    throw std::invalid_argument("row_start must ascend from 0 to the number of tokens");
  if (begin == end) return;
  const int context = step.context_len[row];
  if (context > limits.max_context)
    throw std::invalid_argument("row " + std::to_string(row) + ": a context of " + std::to_string(context) +
                                " tokens is longer than " + std::to_string(limits.max_context));
  const int used = ceil_div(context, limits.block_size);
  const std::string name = "row " + std::to_string(row);
  for (int t = begin; t < end; ++t)
    if (step.positions[t] != context - (end - t) || step.positions[t] < 0)
      throw std::invalid_argument(name + ": its positions must be consecutive and end at context_len - 1");
  if (used > step.table_width)
    throw std::invalid_argument(name + ": a context of " + std::to_string(context) + " tokens needs " +
                                std::to_string(used) + " blocks, its block table holds " +
                                std::to_string(step.table_width));
  if (used > 1 && limits.block_size % kLanes)
    throw std::invalid_argument(name + ": block_size " + std::to_string(limits.block_size) + " is not a multiple of " +
                                std::to_string(kLanes) + ", so a sequence must fit into one block");
  check_range("block id", step.block_table + static_cast<ptrdiff_t>(row) * step.table_width, used, limits.num_blocks);
}

}  // namespace

void check_step(const Step& step, const StepLimits& limits) {
  if (step.num_tokens < 1 || step.num_tokens > limits.max_tokens)
    throw std::invalid_argument("a step of " + std::to_string(step.num_tokens) +
                                " tokens does not fit a program for 1 to " + std::to_string(limits.max_tokens));
  check_range("token id", step.token_ids, step.num_tokens, limits.num_embeddings);
  check_range("slot", step.slots, step.num_tokens, limits.num_blocks * limits.block_size);
  if (step.row_start[0] != 0 || step.row_start[step.num_rows] != step.num_tokens)
    throw std::invalid_argument("row_start must ascend from 0 to the number of tokens");
  for (int row = 0; row < step.num_rows; ++row) check_row(step, limits, row);
  check_range("selected position", step.selected, step.num_selected, step.num_tokens);
  for (int i = 0; i < step.num_selected; ++i) {
    check_range("selected row", step.selected_row + i, 1, step.given_token[i] < 0 ? step.num_entries : step.num_rows);
    if (step.given_token[i] >= limits.vocab)
      throw std::invalid_argument("token id " + std::to_string(step.given_token[i]) +
                                  " is out of range: it must be below " + std::to_string(limits.vocab));
  }
}

}  // namespace vllm
