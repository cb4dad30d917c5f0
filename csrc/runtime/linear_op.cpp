#include "runtime/linear_op.h"

#include <algorithm>

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
  return {memory,         static_cast<ptrdiff_t>(stride / element),       scale,
          scale + groups, reinterpret_cast<int32_t*>(scale + 2 * groups), 3 * groups,
          zero_of(format)};
}

}  // namespace

LinearOp::LinearOp(const OpSpec& spec, const Builder& builder, int index)
    : x_(spec.inputs.at(0)),
      y_(spec.output),
      weight_(builder.matrix(spec.weight("weight"))),
      form_(input_form(weight_.format)) {
  const KernelTable& kernels = builder.kernels;
  const auto optional = [&](const char* name, int length) -> const float* {
    const auto found = spec.weights.find(name);
    return found == spec.weights.end() ? nullptr : builder.vector(found->second, length);
  };
  bias_ = optional("bias", weight_.num_out);
  norm_ = optional("norm", weight_.num_in);
  if (norm_) eps_ = spec.number("eps");
  const bool fused = spec.attrs.count("silu_mul") && spec.attr("silu_mul") != 0.0;
  const bool accumulate = spec.attrs.count("accumulate") && spec.attr("accumulate") != 0.0;
  epilogue_ = fused ? Epilogue::kSiluMul : accumulate ? Epilogue::kAccumulate : Epilogue::kStore;
  if (fused && (bias_ || accumulate || weight_.num_out % (2 * kTile)))
    throw std::invalid_argument("silu_mul cannot be fused with a bias, an accumulation or odd tiles");
  if (weight_.num_in != x_.width || weight_.num_out != (fused ? 2 : 1) * y_.width)
    throw std::invalid_argument("weight '" + spec.weights.at("weight") + "' of " + std::to_string(weight_.num_out) +
                                " x " + std::to_string(weight_.num_in) + " does not fit buffers of widths " +
                                std::to_string(x_.width) + " and " + std::to_string(y_.width));
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
  max_rows_ = builder.max_rows(x_);
  index_ = index;
}

ScratchBytes LinearOp::scratch() const {
  if (!converts()) return {};
  const int private_rows = std::max(kPrivateValues / x_.width, 1);
  return {converted_bytes(form_, x_.width, max_rows_),
          converted_bytes(form_, x_.width, std::min(private_rows, max_rows_))};
}

ConvertedRows LinearOp::input_rows(const Run& run, const Worker& worker, int rows) const {
  auto* x = reinterpret_cast<float*>(run.arena + x_.offset);
  if (!converts()) return {x, x_.width, nullptr, nullptr, nullptr, 0, 0};
  const bool privately = rows == 1 || rows * x_.width <= kPrivateValues;
  uint8_t* memory = privately ? run.scratch_of(worker) : run.shared_scratch;
  ConvertArgs args{x, x_.width, x_.width, norm_, eps_, lay_out(weight_.format, x_.width, rows, memory)};
  const Range mine = privately ? Range{0, rows} : worker.share(rows);
  convert_(args, mine.begin, mine.end);
  if (!privately) worker.sync();
  return args.out;
}

void LinearOp::run(const Run& run, const Worker& worker, int rows) const {
  LinearArgs args{
      weight_,  input_rows(run, worker, rows), rows, bias_, reinterpret_cast<float*>(run.arena + y_.offset), y_.width,
      epilogue_};
  const int items = epilogue_ == Epilogue::kSiluMul ? weight_.num_tiles() / 2 : weight_.num_tiles();
  if (rows > kSharedRows) return multiply_by_runs(run, worker, args, items);
  const Range mine = worker.share(items);
  multiply_(args, mine.begin, mine.end);
  worker.sync();
}

void LinearOp::multiply_by_runs(const Run& run, const Worker& worker, LinearArgs& args, int items) const {
  std::atomic<int>& next = run.counters[index_];
  const int count = std::max(items / (worker.count * kRunsPerThread), 1);
  for (int first = next.fetch_add(count, std::memory_order_relaxed); first < items;
       first = next.fetch_add(count, std::memory_order_relaxed))
    multiply_(args, first, std::min(first + count, items));
  worker.sync();
  // The op runs again for the next slice of samples, which is after further barriers.
  if (worker.index == 0) next.store(0, std::memory_order_relaxed);
}

}  // namespace vllm
