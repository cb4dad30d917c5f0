// A linear layer: converts its input to the form that the weights want, then multiplies.
#include <algorithm>

#include "runtime/op_reader.h"

namespace vllm {
namespace {

// Up to this many values every thread converts for itself: cheaper than waiting for the others.
constexpr int kPrivateValues = 4096;
// Up to this many rows every thread has a share of the tiles, one run of memory. With more, tiles are handed out in runs,
// so that a thread that other programs hold up takes fewer; with few rows that costs more than it saves.
constexpr int kSharedRows = 32;
constexpr int kRunsPerThread = 8;

InputForm input_form(Format format) {
  if (format == Format::kF32 || format == Format::kF8 || format == Format::kF8Block) return InputForm::kF32;
  return format == Format::kBf16 ? InputForm::kBf16 : InputForm::kInt8;
}

// Bytes between rows: an odd number of cache lines, so that rows do not fall on the same cache sets.
size_t row_bytes(InputForm form, int dim) {
  const size_t element = form == InputForm::kF32 ? 4 : form == InputForm::kBf16 ? 2 : 1;
  const size_t lines = align_up(align_up(static_cast<size_t>(dim), kGroup) * element, 64) / 64;
  return (lines | 1) * 64;
}

// What a weight's codes count from.
int zero_of(Format format) {
  if (format == Format::kInt8 || format == Format::kInt8Group) return 128;
  return format == Format::kQ4 ? 8 : 0;
}

size_t groups_bytes(int dim) { return align_up(static_cast<size_t>(ceil_div(dim, kGroup)) * sizeof(float), 64); }

size_t converted_bytes(InputForm form, int dim, int rows) {
  const size_t groups = form == InputForm::kInt8 ? 3 * groups_bytes(dim) : 0;
  return static_cast<size_t>(rows) * (row_bytes(form, dim) + groups);
}

// Rows first, then a row of scales, sums and starts for each.
ConvertedRows lay_out(Format format, int dim, int rows, uint8_t* memory) {
  const InputForm form = input_form(format);
  const size_t stride = row_bytes(form, dim);
  const auto groups = static_cast<ptrdiff_t>(groups_bytes(dim) / sizeof(float));
  auto* scale = reinterpret_cast<float*>(memory + static_cast<size_t>(rows) * stride);
  const size_t element = form == InputForm::kInt8 ? 1 : 4;
  return {.values = memory,
          .stride = static_cast<ptrdiff_t>(stride / element),
          .scale = scale,
          .sum = scale + groups,
          .start = reinterpret_cast<int32_t*>(scale + 2 * groups),
          .groups_stride = 3 * groups,
          .zero = zero_of(format)};
}

class LinearOp : public Op {
 public:
  explicit LinearOp(OpReader& read);
  void run(const Run& run, const Worker& worker, int rows) const override;
  ScratchBytes scratch() const override;

 private:
  void multiply_by_runs(const Run& run, const Worker& worker, LinearArgs& args, int items) const;
  ConvertedRows input_rows(const Run& run, const Worker& worker, int rows) const;
  bool converts() const { return form_ != InputForm::kF32 || norm_; }

  using Convert = void (*)(ConvertArgs&, int, int);
  using Multiply = void (*)(LinearArgs&, int, int);

  BufferSpec x_, y_;
  PackedMatrix weight_;
  const float* bias_;
  const float* norm_;
  float eps_ = 0.0f;
  Epilogue epilogue_;
  InputForm form_;
  Convert convert_;
  Multiply multiply_;
  int max_rows_;
  int place_;
};

LinearOp::LinearOp(OpReader& read)
    : x_(read.input(0)),
      y_(read.output()),
      weight_(read.matrix("weight")),
      bias_(read.optional_vector("bias", weight_.num_out)),
      norm_(read.optional_vector("norm", weight_.num_in)),
      form_(input_form(weight_.format)),
      max_rows_(read.max_rows()),
      place_(read.place()) {
  if (norm_) eps_ = read.number("eps");
  const bool fused = read.flag("silu_mul"), accumulate = read.flag("accumulate");
  epilogue_ = fused ? Epilogue::kSiluMul : accumulate ? Epilogue::kAccumulate : Epilogue::kStore;
  read.check(!fused || (!bias_ && !accumulate && weight_.num_out % (2 * kTile) == 0),
             "silu_mul cannot be fused with a bias, an accumulation or odd tiles");
  read.check(weight_.num_in == x_.width && weight_.num_out == (fused ? 2 : 1) * y_.width,
             "a weight of " + std::to_string(weight_.num_out) + " x " + std::to_string(weight_.num_in) +
                 " does not fit buffers of widths " + std::to_string(x_.width) + " and " + std::to_string(y_.width));
  const KernelTable& kernels = read.builder().kernels;
  convert_ = form_ == InputForm::kF32    ? kernels.convert_f32
             : form_ == InputForm::kBf16 ? kernels.convert_bf16
                                         : kernels.convert_int8;
  switch (weight_.format) {
    case Format::kF32:
      multiply_ = kernels.linear_f32;
      break;
    case Format::kBf16:
      multiply_ = kernels.linear_bf16;
      break;
    case Format::kInt8:
      multiply_ = kernels.linear_int8;
      break;
    case Format::kInt8Group:
      multiply_ = kernels.linear_int8_group;
      break;
    case Format::kQ4:
      multiply_ = kernels.linear_q4;
      break;
    case Format::kQ4Min:
      multiply_ = kernels.linear_q4_min;
      break;
    case Format::kQ4K:
      multiply_ = kernels.linear_q4_k;
      break;
    case Format::kF8:
      multiply_ = kernels.linear_f8;
      break;
    case Format::kF8Block:
      multiply_ = kernels.linear_f8_block;
      break;
  }
}

ScratchBytes LinearOp::scratch() const {
  if (!converts()) return {};
  const int private_rows = std::max(kPrivateValues / x_.width, 1);
  return {.shared = converted_bytes(form_, x_.width, max_rows_),
          .thread = converted_bytes(form_, x_.width, std::min(private_rows, max_rows_))};
}

ConvertedRows LinearOp::input_rows(const Run& run, const Worker& worker, int rows) const {
  float* x = run.rows(x_);
  if (!converts()) return {.values = x, .stride = x_.width};
  const bool privately = rows == 1 || int64_t{rows} * x_.width <= kPrivateValues;
  uint8_t* memory = privately ? run.scratch_of(worker) : run.shared_scratch;
  ConvertArgs args{.x = x,
                   .x_stride = x_.width,
                   .dim = x_.width,
                   .norm_weight = norm_,
                   .eps = eps_,
                   .out = lay_out(weight_.format, x_.width, rows, memory)};
  const Range mine = privately ? Range{0, rows} : worker.share(rows);
  convert_(args, mine.begin, mine.end);
  if (!privately) worker.sync();
  return args.out;
}

void LinearOp::run(const Run& run, const Worker& worker, int rows) const {
  LinearArgs args{.weight = weight_,
                  .x = input_rows(run, worker, rows),
                  .rows = rows,
                  .bias = bias_,
                  .y = run.rows(y_),
                  .y_stride = y_.width,
                  .epilogue = epilogue_};
  const int items = epilogue_ == Epilogue::kSiluMul ? weight_.num_tiles() / 2 : weight_.num_tiles();
  if (rows > kSharedRows) return multiply_by_runs(run, worker, args, items);
  const Range mine = worker.share(items);
  multiply_(args, mine.begin, mine.end);
}

void LinearOp::multiply_by_runs(const Run& run, const Worker& worker, LinearArgs& args, int items) const {
  std::atomic<int>& next = run.counters[place_];
  const int count = std::max(items / (worker.count * kRunsPerThread), 1);
  for (int first = next.fetch_add(count, std::memory_order_relaxed); first < items;
       first = next.fetch_add(count, std::memory_order_relaxed))
    multiply_(args, first, std::min(first + count, items));
}

}  // namespace

std::unique_ptr<Op> build_linear(OpReader& read) { return std::make_unique<LinearOp>(read); }

}  // namespace vllm
