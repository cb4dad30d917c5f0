// Ops on the positions whose logits are wanted: select, sample.
#include <cstring>

#include "runtime/op_reader.h"

namespace vllm {
namespace {

class SelectOp : public RowOp {
 public:
  explicit SelectOp(OpReader& read) : x_(read.input_of_tokens(0)), y_(read.output()) {
    read.check(x_.width == y_.width, "input and output differ in width");
  }

 private:
  void run_rows(const Run& run, Range rows) const override {
    for (int i = rows.begin; i < rows.end; ++i)
      std::memcpy(run.row(y_, i), run.row(x_, run.step.selected[run.first_selected + i]),
                  static_cast<size_t>(x_.width) * sizeof(float));
  }

  BufferSpec x_, y_;
};

class SampleOp : public Op {
 public:
  explicit SampleOp(OpReader& read)
      : kernels_(read.builder().kernels), x_(read.input(0)), default_top_k_(read.integer("default_top_k", 0, kMaxExtent)) {
    read.check(x_.width == read.builder().vocab, "the input has " + std::to_string(x_.width) +
                                                     " logits, the vocabulary " +
                                                     std::to_string(read.builder().vocab) + " tokens");
  }
  void run(const Run& run, const Worker& worker, int rows) const override {
    const Sampler sampler(kernels_, x_.width, run.scratch_of(worker));
    const Range mine = worker.share(rows);
    for (int i = mine.begin; i < mine.end; ++i) sample(run, sampler, run.first_selected + i, run.row(x_, i));
  }
  ScratchBytes scratch() const override { return {.shared = 0, .thread = Sampler::scratch_bytes(x_.width)}; }

 private:
  void sample(const Run& run, const Sampler& sampler, int entry, const float* logits) const {
    const int row = run.step.selected_row[entry];
    const int given = run.step.given_token[entry];
    const bool sampled = given < 0;
    if (!all_finite(logits, x_.width)) {
      if (sampled && run.outputs.tokens) run.outputs.tokens[entry] = kNoToken;
      if (run.outputs.logprobs.token_id) run.outputs.logprobs.count[entry] = kNoLogprobs;
      return;
    }
    int token = given;
    if (sampled) {
      if (!run.outputs.tokens) return;
      token = run.outputs.tokens[entry] = sampler.sample(logits, run.sampling, row, default_top_k_);
    }
    if (!run.outputs.logprobs.token_id) return;
    const int num_top = sampled ? run.sampling.num_logprobs[row] : run.step.num_prompt_logprobs[row];
    run.outputs.logprobs.count[entry] = 0;
    if (num_top < 0) return;
    const int32_t* offsets = run.sampling.logprob_ids_offsets;
    const int num_named = sampled ? offsets[row + 1] - offsets[row] : 0;
    sampler.report(logits, token, num_top, num_named ? run.sampling.logprob_ids + offsets[row] : nullptr, num_named,
                   run.outputs.logprobs, entry);
  }

  const KernelTable& kernels_;
  BufferSpec x_;
  int default_top_k_;
};

}  // namespace

std::unique_ptr<Op> build_select(OpReader& read) { return std::make_unique<SelectOp>(read); }
std::unique_ptr<Op> build_sample(OpReader& read) { return std::make_unique<SampleOp>(read); }

}  // namespace vllm
