// Ops that work on one row at a time with a kernel of their own: embed, rms_norm, rotary_angles, silu_mul.
#include "runtime/op_reader.h"

namespace vllm {
namespace {

class EmbedOp : public KernelOp<EmbedArgs> {
 public:
  explicit EmbedOp(OpReader& read)
      : KernelOp(read.builder().kernels.embed),
        y_(read.output()),
        table_(read.matrix("weight")),
        scale_(read.number("scale")) {
    read.check(table_.num_in == y_.width, "the table's width is not the buffer's");
    int& most = read.builder().facts.num_embeddings;
    most = std::min(most, table_.num_out);
  }

 private:
  EmbedArgs arguments(const Run& run) const override {
    return {.table = table_, .token_ids = run.step.token_ids, .y = run.rows(y_), .y_stride = y_.width, .scale = scale_};
  }

  BufferSpec y_;
  PackedMatrix table_;
  float scale_;
};

class RmsNormOp : public KernelOp<RmsNormArgs> {
 public:
  explicit RmsNormOp(OpReader& read)
      : KernelOp(read.builder().kernels.rms_norm),
        x_(read.input(0)),
        y_(read.output()),
        weight_(read.vector("weight", x_.width)),
        eps_(read.number("eps")) {
    read.check(x_.width == y_.width, "input and output differ in width");
  }

 private:
  RmsNormArgs arguments(const Run& run) const override {
    return {.x = run.rows(x_),
            .x_stride = x_.width,
            .weight = weight_,
            .y = run.rows(y_),
            .y_stride = y_.width,
            .dim = x_.width,
            .eps = eps_};
  }

  BufferSpec x_, y_;
  const float* weight_;
  float eps_;
};

class RotaryAnglesOp : public KernelOp<RotaryAnglesArgs> {
 public:
  explicit RotaryAnglesOp(OpReader& read)
      : KernelOp(read.builder().kernels.rotary_angles), y_(read.output()), factor_(read.number("attention_factor")) {
    read.check(y_.width % 2 == 0, "the output's width is odd");
    inv_freq_ = read.vector("inv_freq", y_.width / 2);
  }

 private:
  RotaryAnglesArgs arguments(const Run& run) const override {
    return {.positions = run.step.positions,
            .inv_freq = inv_freq_,
            .angles = run.rows(y_),
            .rotary_dim = y_.width,
            .factor = factor_};
  }

  BufferSpec y_;
  const float* inv_freq_;
  float factor_;
};

class SiluMulOp : public KernelOp<SiluMulArgs> {
 public:
  explicit SiluMulOp(OpReader& read)
      : KernelOp(read.builder().kernels.silu_mul), x_(read.input(0)), y_(read.output()) {
    read.check(x_.width == 2 * y_.width, "the input is not gate and up side by side");
  }

 private:
  SiluMulArgs arguments(const Run& run) const override {
    return {.x = run.rows(x_), .x_stride = x_.width, .y = run.rows(y_), .y_stride = y_.width, .dim = y_.width};
  }

  BufferSpec x_, y_;
};

}  // namespace

std::unique_ptr<Op> build_embed(OpReader& read) { return std::make_unique<EmbedOp>(read); }
std::unique_ptr<Op> build_rms_norm(OpReader& read) { return std::make_unique<RmsNormOp>(read); }
std::unique_ptr<Op> build_rotary_angles(OpReader& read) { return std::make_unique<RotaryAnglesOp>(read); }
std::unique_ptr<Op> build_silu_mul(OpReader& read) { return std::make_unique<SiluMulOp>(read); }

}  // namespace vllm
