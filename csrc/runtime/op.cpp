#include "runtime/op.h"

#include <cstring>

#include "runtime/draft_ops.h"
#include "runtime/linear_op.h"

namespace vllm {
namespace {

float* rows_of(const Run& run, const BufferSpec& buffer) { return reinterpret_cast<float*>(run.arena + buffer.offset); }

void check(bool holds, const OpSpec& spec, const char* what) {
  if (!holds) throw std::invalid_argument("op '" + spec.kind + "': " + what);
}

class EmbedOp : public Op {
 public:
  EmbedOp(const OpSpec& spec, const Builder& builder)
      : kernel_(builder.kernels.embed),
        y_(spec.output),
        table_(builder.matrix(spec.weight("weight"))),
        scale_(spec.number("scale")) {
    check(table_.num_in == y_.width, spec, "the table's width is not the buffer's");
  }
  void run(const Run& run, const Worker& worker, int rows) const override {
    EmbedArgs args{table_, run.step.token_ids, rows_of(run, y_), y_.width, scale_};
    const Range mine = worker.share(rows);
    kernel_(args, mine.begin, mine.end);
    worker.sync();
  }

 private:
  void (*kernel_)(EmbedArgs&, int, int);
  BufferSpec y_;
  PackedMatrix table_;
  float scale_;
};

class RmsNormOp : public Op {
 public:
  RmsNormOp(const OpSpec& spec, const Builder& builder)
      : kernel_(builder.kernels.rms_norm),
        x_(spec.inputs.at(0)),
        y_(spec.output),
        weight_(builder.vector(spec.weight("weight"), x_.width)),
        eps_(spec.number("eps")) {
    check(x_.width == y_.width, spec, "input and output differ in width");
  }
  void run(const Run& run, const Worker& worker, int rows) const override {
    RmsNormArgs args{rows_of(run, x_), x_.width, weight_, rows_of(run, y_), y_.width, x_.width, eps_};
    const Range mine = worker.share(rows);
    kernel_(args, mine.begin, mine.end);
    worker.sync();
  }

 private:
  void (*kernel_)(RmsNormArgs&, int, int);
  BufferSpec x_, y_;
  const float* weight_;
  float eps_;
};

class RotaryAnglesOp : public Op {
 public:
  RotaryAnglesOp(const OpSpec& spec, const Builder& builder)
      : kernel_(builder.kernels.rotary_angles),
        y_(spec.output),
        inv_freq_(builder.vector(spec.weight("inv_freq"), y_.width / 2)),
        factor_(spec.number("attention_factor")) {}
  void run(const Run& run, const Worker& worker, int rows) const override {
    RotaryAnglesArgs args{run.step.positions, inv_freq_, rows_of(run, y_), y_.width, factor_};
    const Range mine = worker.share(rows);
    kernel_(args, mine.begin, mine.end);
    worker.sync();
  }

 private:
  void (*kernel_)(RotaryAnglesArgs&, int, int);
  BufferSpec y_;
  const float* inv_freq_;
  float factor_;
};

void check_heads(const OpSpec& spec, const Builder& builder, const BufferSpec& qkv) {
  const KvShape& kv = builder.kv.shape();
  const int heads = spec.integer("num_heads"), layer = spec.integer("layer");
  check(spec.integer("num_kv_heads") == kv.num_kv_heads && spec.integer("head_dim") == kv.head_dim, spec,
        "heads differ from the KV cache's");
  check(heads > 0 && heads % kv.num_kv_heads == 0, spec, "num_heads is not a multiple of num_kv_heads");
  check(qkv.width == (heads + 2 * kv.num_kv_heads) * kv.head_dim, spec, "the input is not q, k and v side by side");
  check(layer >= 0 && layer < kv.num_layers, spec, "the KV cache has no such layer");
}

class RopeKvOp : public Op {
 public:
  RopeKvOp(const OpSpec& spec, const Builder& builder)
      : kernel_(builder.kernels.rope_kv),
        qkv_(spec.inputs.at(0)),
        angles_(spec.inputs.at(1)),
        num_heads_(spec.integer("num_heads")) {
    check_heads(spec, builder, qkv_);
    kv_ = builder.kv.layer(spec.integer("layer"));
    check(angles_.width > 0 && angles_.width % 2 == 0 && angles_.width <= kv_.head_dim, spec,
          "rotary_dim must be even and at most head_dim");
    if (spec.weights.count("q_norm")) q_norm_ = builder.vector(spec.weight("q_norm"), kv_.head_dim);
    if (spec.weights.count("k_norm")) k_norm_ = builder.vector(spec.weight("k_norm"), kv_.head_dim);
    if (q_norm_ || k_norm_) eps_ = spec.number("eps");
  }
  void run(const Run& run, const Worker& worker, int rows) const override {
    RopeKvArgs args{rows_of(run, qkv_),
                    qkv_.width,
                    rows_of(run, angles_),
                    run.step.slots,
                    run.last,
                    q_norm_,
                    k_norm_,
                    kv_,
                    num_heads_,
                    angles_.width,
                    eps_};
    const Range mine = worker.share(rows * kv_.num_kv_heads);
    kernel_(args, mine.begin, mine.end);
    worker.sync();
  }

 private:
  void (*kernel_)(RopeKvArgs&, int, int);
  BufferSpec qkv_, angles_;
  KvLayer kv_;
  const float* q_norm_ = nullptr;
  const float* k_norm_ = nullptr;
  int num_heads_;
  float eps_ = 0.0f;
};

class AttentionOp : public Op {
 public:
  AttentionOp(const OpSpec& spec, const Builder& builder, int index)
      : kernel_(builder.kernels.attention),
        x_(spec.inputs.at(0)),
        y_(spec.output),
        num_heads_(spec.integer("num_heads")),
        scale_(spec.number("scale")),
        window_(spec.integer("window")),
        index_(index),
        max_context_(builder.max_context) {
    check_heads(spec, builder, x_);
    kv_ = builder.kv.layer(spec.integer("layer"));
    check(y_.width == num_heads_ * kv_.head_dim, spec, "the output's width is not num_heads x head_dim");
  }
  void run(const Run& run, const Worker& worker, int) const override {
    AttentionArgs args{};
    args.qkv = rows_of(run, x_);
    args.stride = x_.width;
    args.y = rows_of(run, y_);
    args.y_stride = y_.width;
    args.positions = run.step.positions;
    args.blocks = run.queries;
    args.block_table = run.step.block_table;
    args.block_table_stride = run.step.table_width;
    args.kv = kv_;
    args.num_heads = num_heads_;
    args.heads_per_slice = run.heads_per_slice;
    args.slices = num_heads_ / run.heads_per_slice;
    args.scale = scale_;
    args.window = window_;
    args.scratch = reinterpret_cast<uint32_t*>(run.scratch_of(worker));
    const int items = run.num_queries * args.slices;
    std::atomic<int>& next = run.counters[index_];
    for (int i = next.fetch_add(1, std::memory_order_relaxed); i < items;
         i = next.fetch_add(1, std::memory_order_relaxed))
      kernel_(args, i, i + 1);
    worker.sync();
  }
  ScratchBytes scratch() const override {
    const size_t columns =
        static_cast<size_t>(round_up(max_context_, 2 * kLanes) + 3 * kLanes + round_up(kv_.head_dim, kLanes));
    return {0, (columns * kAttentionRows + 2 * kLanes) * sizeof(uint32_t)};
  }

 private:
  void (*kernel_)(AttentionArgs&, int, int);
  BufferSpec x_, y_;
  KvLayer kv_;
  int num_heads_;
  float scale_;
  int window_;
  int index_;
  int max_context_;
};

class SiluMulOp : public Op {
 public:
  SiluMulOp(const OpSpec& spec, const Builder& builder)
      : kernel_(builder.kernels.silu_mul), x_(spec.inputs.at(0)), y_(spec.output) {
    check(x_.width == 2 * y_.width, spec, "the input is not gate and up side by side");
  }
  void run(const Run& run, const Worker& worker, int rows) const override {
    SiluMulArgs args{rows_of(run, x_), x_.width, rows_of(run, y_), y_.width, y_.width};
    const Range mine = worker.share(rows);
    kernel_(args, mine.begin, mine.end);
    worker.sync();
  }

 private:
  void (*kernel_)(SiluMulArgs&, int, int);
  BufferSpec x_, y_;
};

class SelectOp : public Op {
 public:
  explicit SelectOp(const OpSpec& spec) : x_(spec.inputs.at(0)), y_(spec.output) {
    check(x_.width == y_.width, spec, "input and output differ in width");
  }
  void run(const Run& run, const Worker& worker, int rows) const override {
    const Range mine = worker.share(rows);
    const auto width = static_cast<size_t>(x_.width);
    for (int i = mine.begin; i < mine.end; ++i)
      std::memcpy(rows_of(run, y_) + static_cast<size_t>(i) * width,
                  rows_of(run, x_) + static_cast<size_t>(run.step.selected[run.first_selected + i]) * width,
                  width * sizeof(float));
    worker.sync();
  }

 private:
  BufferSpec x_, y_;
};

class SampleOp : public Op {
 public:
  SampleOp(const OpSpec& spec, const Builder& builder)
      : kernels_(builder.kernels), x_(spec.inputs.at(0)), default_top_k_(spec.integer("default_top_k")) {}
  void run(const Run& run, const Worker& worker, int rows) const override {
    const Sampler sampler(kernels_, x_.width, run.scratch_of(worker));
    const Range mine = worker.share(rows);
    for (int i = mine.begin; i < mine.end; ++i)
      sample(run, sampler, run.first_selected + i, rows_of(run, x_) + static_cast<ptrdiff_t>(i) * x_.width);
    worker.sync();
  }
  ScratchBytes scratch() const override { return {0, Sampler::scratch_bytes(x_.width)}; }

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

std::unique_ptr<Op> build_op(const OpSpec& spec, const Builder& builder, int index) {
  if (spec.kind == "embed") return std::make_unique<EmbedOp>(spec, builder);
  if (spec.kind == "rms_norm") return std::make_unique<RmsNormOp>(spec, builder);
  if (spec.kind == "rotary_angles") return std::make_unique<RotaryAnglesOp>(spec, builder);
  if (spec.kind == "linear") return std::make_unique<LinearOp>(spec, builder, index);
  if (spec.kind == "rope_kv") return std::make_unique<RopeKvOp>(spec, builder);
  if (spec.kind == "attention") return std::make_unique<AttentionOp>(spec, builder, index);
  if (spec.kind == "silu_mul") return std::make_unique<SiluMulOp>(spec, builder);
  if (spec.kind == "select") return std::make_unique<SelectOp>(spec);
  if (spec.kind == "sample") return std::make_unique<SampleOp>(spec, builder);
  if (auto op = build_draft_op(spec, builder)) return op;
  throw std::invalid_argument("unknown op '" + spec.kind + "'");
}

int heads_per_slice(int num_heads, int num_kv_heads, int num_rows, int threads) {
  const int group = num_heads / num_kv_heads;
  int heads = 1;
  // Few rows: slices of one head, so that threads share the work evenly.
  if (num_rows * num_kv_heads < 4 * threads && threads > 1) return heads;
  for (int candidate = 1; candidate <= group && candidate <= kAttentionRows; ++candidate)
    if (group % candidate == 0) heads = candidate;
  return heads;
}

}  // namespace vllm
