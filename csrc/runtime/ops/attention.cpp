// Ops that know heads and the KV cache: rope_kv, attention.
#include <climits>

#include "runtime/op_reader.h"

namespace vllm {
namespace {

// One layer's attention, as both ops describe it: its place in the KV cache, and q, k and v side by side in a buffer.
struct Heads {
  int num_heads;
  KvLayer kv;

  Heads(OpReader& read, const BufferSpec& qkv) {
    const KvShape& shape = read.builder().kv.shape();
    num_heads = read.integer("num_heads", 1, kMaxExtent);
    read.check(read.integer("num_kv_heads", 1, kMaxExtent) == shape.num_kv_heads &&
                   read.integer("head_dim", 1, kMaxExtent) == shape.head_dim,
               "heads differ from the KV cache's");
    read.check(num_heads % shape.num_kv_heads == 0, "num_heads is not a multiple of num_kv_heads");
    read.check(qkv.width == (int64_t{num_heads} + 2 * int64_t{shape.num_kv_heads}) * shape.head_dim,
               "the input is not q, k and v side by side");
    read.check(int64_t{read.max_rows()} * num_heads <= INT_MAX, "there are too many heads of all tokens");
    const int layer = read.integer("layer", 0, INT_MAX);
    read.check(layer < shape.num_layers, "the KV cache has no such layer");
    kv = read.builder().kv.layer(layer);
    read.builder().facts.layers.insert(layer);
  }
};

class RopeKvOp : public KernelOp<RopeKvArgs> {
 public:
  explicit RopeKvOp(OpReader& read) : RopeKvOp(read, read.input(0)) {}

 private:
  RopeKvOp(OpReader& read, const BufferSpec& qkv)
      : KernelOp(read.builder().kernels.rope_kv, read.builder().kv.shape().num_kv_heads),
        qkv_(qkv),
        angles_(read.input(1)),
        heads_(read, qkv),
        q_norm_(read.optional_vector("q_norm", heads_.kv.head_dim)),
        k_norm_(read.optional_vector("k_norm", heads_.kv.head_dim)) {
    read.check(angles_.width % 2 == 0 && angles_.width <= heads_.kv.head_dim,
               "rotary_dim must be even and at most head_dim");
    if (read.has("rotary_dim"))
      read.check(read.integer("rotary_dim", 1, kMaxExtent) == angles_.width, "the angles are not of rotary_dim");
    if (q_norm_ || k_norm_ || read.has("eps")) eps_ = read.number("eps");
    read.skip("attention_factor");  // it is in the angles
  }

  RopeKvArgs arguments(const Run& run) const override {
    return {.qkv = run.rows(qkv_),
            .stride = qkv_.width,
            .angles = run.rows(angles_),
            .slots = run.step.slots,
            .last = run.last,
            .q_norm = q_norm_,
            .k_norm = k_norm_,
            .kv = heads_.kv,
            .num_heads = heads_.num_heads,
            .rotary_dim = angles_.width,
            .eps = eps_};
  }

  BufferSpec qkv_, angles_;
  Heads heads_;
  const float* q_norm_;
  const float* k_norm_;
  float eps_ = 0.0f;
};

class AttentionOp : public Op {
 public:
  explicit AttentionOp(OpReader& read)
      : kernel_(read.builder().kernels.attention),
        x_(read.input(0)),
        y_(read.output()),
        heads_(read, x_),
        scale_(read.number("scale")),
        window_(read.integer("window", 0, INT_MAX)),
        place_(read.place()),
        max_context_(read.builder().max_context) {
    read.check(y_.width == int64_t{heads_.num_heads} * heads_.kv.head_dim,
               "the output's width is not num_heads x head_dim");
    int& num_heads = read.builder().facts.num_heads;
    read.check(num_heads == 0 || num_heads == heads_.num_heads, "attention ops differ in num_heads");
    num_heads = heads_.num_heads;
  }
  void run(const Run& run, const Worker& worker, int) const override {
    AttentionArgs args{.qkv = run.rows(x_),
                       .stride = x_.width,
                       .y = run.rows(y_),
                       .y_stride = y_.width,
                       .positions = run.step.positions,
                       .blocks = run.queries,
                       .block_table = run.step.block_table,
                       .block_table_stride = run.step.table_width,
                       .kv = heads_.kv,
                       .num_heads = heads_.num_heads,
                       .slices = heads_.num_heads / run.heads_per_slice,
                       .heads_per_slice = run.heads_per_slice,
                       .scale = scale_,
                       .window = window_,
                       .scratch = reinterpret_cast<uint32_t*>(run.scratch_of(worker))};
    const int items = run.num_queries * args.slices;
    std::atomic<int>& next = run.counters[place_];
    for (int i = next.fetch_add(1, std::memory_order_relaxed); i < items;
         i = next.fetch_add(1, std::memory_order_relaxed))
      kernel_(args, i, i + 1);
  }
  ScratchBytes scratch() const override {
    const size_t columns =
        static_cast<size_t>(round_up(max_context_, 2 * kLanes) + 3 * kLanes + round_up(heads_.kv.head_dim, kLanes));
    return {.shared = 0, .thread = (columns * kAttentionRows + 2 * kLanes) * sizeof(uint32_t)};
  }

 private:
  void (*kernel_)(AttentionArgs&, int, int);
  BufferSpec x_, y_;
  Heads heads_;
  float scale_;
  int window_;
  int place_;
  int max_context_;
};

}  // namespace

std::unique_ptr<Op> build_rope_kv(OpReader& read) { return std::make_unique<RopeKvOp>(read); }
std::unique_ptr<Op> build_attention(OpReader& read) { return std::make_unique<AttentionOp>(read); }

}  // namespace vllm
