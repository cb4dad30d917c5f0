// Speculative decoding of a step in one call: draft, verify, accept.
//
// A row's draft is accepted exactly when it is what the target samples in its place, with the draw of that place and the
// accepted drafts in its history. So a row's tokens are those it would have had without drafts.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/model.h"

namespace vllm {

// How drafts are made: by looking them up in the text (no `draft`), or by a model with a KV cache of the target's blocks.
struct DraftSource {
  Model* draft;      // null: lookup
  int program;       // of `draft`
  int shortest;      // lookup: tokens at the end of the text that
  int longest;       //         are looked for
  bool keeps_drafts; // the KV that `draft` has of its own accepted drafts is final
};

// A step of rows that decode: one token each, the last known one.
struct SpeculativeStep {
  int num_rows;
  int table_width;
  const int32_t* context_len;  // [rows] known tokens
  const int32_t* block_table;  // [rows, table_width]
  const int32_t* num_drafts;   // [rows] drafts at most; row r has so many entries in the sampling rows, and one more
  int num_entries;             // all rows' entries
  int32_t* history;            // SamplingRows::history; drafts are written behind the known tokens
  uint8_t* filled;             // [slots] 1 where the draft's KV is that of the token there; null for lookup
};

// tokens: [rows, width], width greater than any num_drafts. logprobs: entries in order of row and place, without gaps:
// num_drafted + 1 a row; null if none are wanted.
struct SpeculativeOutputs {
  int32_t* tokens;
  int width;
  int32_t* num_new;
  int32_t* num_drafted;
  LogprobRows logprobs;
};

class Speculator {
 public:
  // `target` and the draft outlive this. most_tokens: of `source.program`, if a model drafts.
  Speculator(Model& target, const DraftSource& source, int most_tokens, int max_rows, int max_drafts);

  // Returns how many tokens the draft model had to read beside each row's newest ones. Throws std::invalid_argument,
  // with nothing done, for a malformed step.
  int run(int program, const SpeculativeStep& step, const SamplingRows& sampling, const SpeculativeOutputs& outputs);

 private:
  // A packed step under construction.
  struct Packed {
    std::vector<int32_t> token_ids, positions, slots, row_start, context_len, block_table, selected, selected_row, given;

    void reserve(int tokens, int rows, int table_width);
    void clear();
    Step view(int table_width, int num_entries) const;
  };

  void check(const SpeculativeStep& step, const SamplingRows& sampling) const;
  int32_t* history_of(int row) const;
  int slot(int row, int position) const;
  int first_unread(int row) const;
  void begin_row(Packed& packed, int row) const;
  void add_token(Packed& packed, int row, int position) const;
  static void end_row(Packed& packed, int end);
  void select_last(Packed& packed, int row, int place) const;
  void look_up();
  void draft();
  void read_up_to_date();
  bool read_row(int row, int& room);
  void extend(int place);
  void sample_drafts();
  void verify(int program, const SpeculativeOutputs& outputs);
  void accept(const SpeculativeOutputs& outputs);
  void note_filled(int row, int num_accepted) const;

  Model& target_;
  DraftSource source_;
  int most_tokens_;
  int block_size_;
  int num_blocks_;
  SpeculativeStep step_{};
  SamplingRows sampling_{};
  int num_caught_up_ = 0;
  std::vector<int> first_entry_, num_drafted_, drafting_;
  Packed packed_;
  std::vector<int32_t> sampled_;
};

}  // namespace vllm
