#include "runtime/speculator.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "runtime/ngram.h"

namespace vllm {

void Speculator::Packed::reserve(int tokens, int rows, int table_width) {
  const auto count = static_cast<size_t>(tokens), entries = static_cast<size_t>(rows);
  for (auto* of_tokens : {&token_ids, &positions, &slots, &selected, &selected_row, &given}) of_tokens->reserve(count);
  row_start.reserve(entries + 1);
  context_len.reserve(entries);
  block_table.reserve(entries * static_cast<size_t>(table_width));
}

void Speculator::Packed::clear() {
  for (auto* values : {&token_ids, &positions, &slots, &context_len, &block_table, &selected, &selected_row, &given})
    values->clear();
  row_start.assign(1, 0);
}

Step Speculator::Packed::view(int table_width, int num_entries) const {
  return {static_cast<int>(token_ids.size()),
          static_cast<int>(context_len.size()),
          static_cast<int>(selected.size()),
          table_width,
          token_ids.data(),
          positions.data(),
          slots.data(),
          row_start.data(),
          context_len.data(),
          block_table.data(),
          selected.data(),
          selected_row.data(),
          given.data(),
          nullptr,
          num_entries};
}

Speculator::Speculator(Model& target, const DraftSource& source, int most_tokens, int max_rows, int max_drafts)
    : target_(target),
      source_(source),
      most_tokens_(most_tokens),
      block_size_(target.kv_shape().block_size),
      num_blocks_(target.kv_shape().num_blocks) {
  if (source.draft && (source.draft->kv_shape().block_size != block_size_ ||
                       source.draft->kv_shape().num_blocks != num_blocks_))
    throw std::invalid_argument("the draft's KV cache must have its target's blocks");
  if (source.draft && source.draft->vocab() > target.vocab())
    throw Malformed("the draft has " + std::to_string(source.draft->vocab()) + " tokens, its target " +
                    std::to_string(target.vocab()));
  if (!source.draft && (source.shortest < 1 || source.longest < source.shortest))
    throw std::invalid_argument("lookup needs 1 <= shortest <= longest");
  const int entries = max_rows * (max_drafts + 1);
  const int table_width = ceil_div(target.max_context(), block_size_);
  packed_.reserve(std::max(entries, most_tokens), max_rows, table_width);
  sampled_.resize(static_cast<size_t>(entries));
  first_entry_.reserve(static_cast<size_t>(max_rows));
  num_drafted_.reserve(static_cast<size_t>(max_rows));
  drafting_.reserve(static_cast<size_t>(max_rows));
}

int Speculator::run(int program, const SpeculativeStep& step, const SamplingRows& sampling,
                    const SpeculativeOutputs& outputs) {
  check(step, sampling);
  step_ = step;
  sampling_ = sampling;
  num_caught_up_ = 0;
  first_entry_.clear();
  for (int row = 0, entry = 0; row < step.num_rows; entry += step.num_drafts[row++] + 1) first_entry_.push_back(entry);
  num_drafted_.assign(static_cast<size_t>(step.num_rows), 0);
  source_.draft ? draft() : look_up();
  verify(program, outputs);
  accept(outputs);
  return num_caught_up_;
}

void Speculator::check(const SpeculativeStep& step, const SamplingRows& sampling) const {
  int entry = 0;
  for (int row = 0; row < step.num_rows; ++row) {
    const std::string name = "row " + std::to_string(row);
    const int known = step.context_len[row], drafts = step.num_drafts[row];
    if (known < 1 || drafts < 0) throw std::invalid_argument(name + ": it needs a known token, and drafts of 0 or more");
    const int used = ceil_div(known + drafts, block_size_);
    if (used > step.table_width)
      throw std::invalid_argument(name + ": " + std::to_string(known + drafts) + " tokens need " +
                                  std::to_string(used) + " blocks, its block table holds " +
                                  std::to_string(step.table_width));
    for (int i = 0; i < used; ++i) {
      const int block = step.block_table[row * step.table_width + i];
      if (block < 0 || block >= num_blocks_)
        throw std::invalid_argument(name + ": block id " + std::to_string(block) + " is out of range");
    }
    if (entry + drafts + 1 > step.num_entries || entry + drafts + 1 > static_cast<int>(sampled_.size()))
      throw std::invalid_argument("there are more drafts than sampling entries, or than were planned for");
    for (int place = 0; place <= drafts; ++place, ++entry)
      if (sampling.position[entry] != known + place || sampling.history_line[entry] != sampling.history_line[entry - place])
        throw std::invalid_argument(name + ": its sampling entries must follow its known tokens");
  }
  if (entry != step.num_entries) throw std::invalid_argument("there must be a sampling entry a draft, and one a row");
}

int32_t* Speculator::history_of(int row) const {
  const int line = sampling_.history_line[first_entry_[static_cast<size_t>(row)]];
  return step_.history + line * sampling_.history_stride;
}

int Speculator::slot(int row, int position) const {
  return step_.block_table[row * step_.table_width + position / block_size_] * block_size_ + position % block_size_;
}

void Speculator::begin_row(Packed& packed, int row) const {
  const int32_t* table = step_.block_table + static_cast<ptrdiff_t>(row) * step_.table_width;
  packed.block_table.insert(packed.block_table.end(), table, table + step_.table_width);
}

void Speculator::add_token(Packed& packed, int row, int position) const {
  packed.token_ids.push_back(history_of(row)[position]);
  packed.positions.push_back(position);
  packed.slots.push_back(slot(row, position));
}

void Speculator::end_row(Packed& packed, int end) {
  packed.row_start.push_back(static_cast<int32_t>(packed.token_ids.size()));
  packed.context_len.push_back(end);
}

// The token added last is sampled behind, as entry `place` of the row says.
void Speculator::select_last(Packed& packed, int row, int place) const {
  packed.selected.push_back(static_cast<int32_t>(packed.token_ids.size()) - 1);
  packed.selected_row.push_back(first_entry_[static_cast<size_t>(row)] + place);
  packed.given.push_back(-1);
}

void Speculator::look_up() {
  for (int row = 0; row < step_.num_rows; ++row)
    num_drafted_[static_cast<size_t>(row)] = propose_ngram(history_of(row), step_.context_len[row], source_.shortest,
                                                           source_.longest, step_.num_drafts[row]);
}

void Speculator::draft() {
  read_up_to_date();
  if (packed_.token_ids.empty()) return;
  sample_drafts();
  for (int place = 1; !drafting_.empty(); ++place) {
    extend(place);
    if (!drafting_.empty()) sample_drafts();
  }
}

// The first position, of those from which on the draft's KV lacks all but the last known token's, that is to be read.
int Speculator::first_unread(int row) const {
  int position = step_.context_len[row] - 1;
  while (position > 0 && !step_.filled[slot(row, position - 1)]) --position;
  return position;
}

// Packs what the draft has not read of the rows that may draft; rows with little to read first, so that a long prompt
// holds back nobody but itself. drafting_: rows that have read all.
void Speculator::read_up_to_date() {
  packed_.clear();
  drafting_.clear();
  int room = most_tokens_;
  for (const bool is_long : {false, true})
    for (int row = 0; row < step_.num_rows; ++row) {
      const bool has_much = step_.num_drafts[row] > 0 && step_.context_len[row] - first_unread(row) > 2;
      if (step_.num_drafts[row] > 0 && has_much == is_long && read_row(row, room)) drafting_.push_back(row);
    }
}

// Whether the row has read all.
bool Speculator::read_row(int row, int& room) {
  const int known = step_.context_len[row], start = first_unread(row), end = std::min(known, start + room);
  if (start == end) return false;
  begin_row(packed_, row);
  for (int position = start; position < end; ++position) {
    add_token(packed_, row, position);
    step_.filled[slot(row, position)] = 1;
  }
  end_row(packed_, end);
  room -= end - start;
  num_caught_up_ += std::max(end - start - 2, 0);
  if (end < known) return false;
  select_last(packed_, row, 0);
  return true;
}

// Packs the newest draft of each row that may have another.
void Speculator::extend(int place) {
  packed_.clear();
  drafting_.erase(std::remove_if(drafting_.begin(), drafting_.end(),
                                 [&](int row) {
                                   return step_.num_drafts[row] <= place || num_drafted_[static_cast<size_t>(row)] < place;
                                 }),
                  drafting_.end());
  for (int row : drafting_) {
    const int position = step_.context_len[row] - 1 + place;
    begin_row(packed_, row);
    add_token(packed_, row, position);
    end_row(packed_, position + 1);
    select_last(packed_, row, place);
  }
}

// Runs the packed step on the draft; its samples become the next draft of each row in drafting_. Where its logits are not
// finite, the row has no further draft.
void Speculator::sample_drafts() {
  Outputs outputs{};
  outputs.tokens = sampled_.data();
  source_.draft->run(source_.program, packed_.view(step_.table_width, step_.num_entries), sampling_, outputs);
  for (size_t i = 0; i < drafting_.size(); ++i) {
    if (sampled_[i] == kNoToken) continue;
    const int row = drafting_[i];
    int& count = num_drafted_[static_cast<size_t>(row)];
    history_of(row)[step_.context_len[row] + count++] = sampled_[i];
  }
}

void Speculator::verify(int program, const SpeculativeOutputs& outputs) {
  packed_.clear();
  for (int row = 0; row < step_.num_rows; ++row) {
    const int known = step_.context_len[row], drafted = num_drafted_[static_cast<size_t>(row)];
    begin_row(packed_, row);
    for (int place = 0; place <= drafted; ++place) {
      add_token(packed_, row, known - 1 + place);
      select_last(packed_, row, place);
    }
    end_row(packed_, known + drafted);
  }
  Outputs out{};
  out.tokens = sampled_.data();
  out.logprobs = outputs.logprobs;
  target_.run(program, packed_.view(step_.table_width, step_.num_entries), sampling_, out);
}

void Speculator::accept(const SpeculativeOutputs& outputs) {
  const int32_t* sampled = sampled_.data();
  for (int row = 0; row < step_.num_rows; ++row) {
    const int drafted = num_drafted_[static_cast<size_t>(row)];
    const int32_t* drafts = history_of(row) + step_.context_len[row];
    int accepted = 0;
    while (accepted < drafted && sampled[accepted] == drafts[accepted]) ++accepted;
    std::copy(sampled, sampled + accepted + 1, outputs.tokens + static_cast<ptrdiff_t>(row) * outputs.width);
    outputs.num_new[row] = accepted + 1;
    outputs.num_drafted[row] = drafted;
    if (step_.filled) note_filled(row, accepted);
    sampled += drafted + 1;
  }
}

// Of the positions that this step wrote: the draft has read the last known token if it drafted at all, and its own
// drafts but the last. What was not accepted is void.
void Speculator::note_filled(int row, int num_accepted) const {
  const int known = step_.context_len[row], drafted = num_drafted_[static_cast<size_t>(row)];
  if (!step_.num_drafts[row]) step_.filled[slot(row, known - 1)] = 0;
  for (int place = 1; place <= drafted; ++place)
    step_.filled[slot(row, known - 1 + place)] = source_.keeps_drafts && place < drafted && place <= num_accepted;
}

}  // namespace vllm
