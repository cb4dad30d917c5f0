#include "runtime/draft_ops.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "runtime/hidden_cache.h"

namespace vllm {
namespace {

constexpr float kAbsent = -1e20f;  // ABSENT of vllm/targets/cpu/graph.py

const HiddenCache& cache_of(const OpSpec& spec, const Builder& builder, const BufferSpec& buffer) {
  if (!builder.hidden) throw std::invalid_argument("op '" + spec.kind + "' needs a hidden cache, the model has none");
  if (builder.hidden->width() != buffer.width)
    throw std::invalid_argument("op '" + spec.kind + "': the hidden cache has " +
                                std::to_string(builder.hidden->width()) + " columns, the buffer " +
                                std::to_string(buffer.width));
  return *builder.hidden;
}

float* row_of(const Run& run, const BufferSpec& buffer, int row) {
  return reinterpret_cast<float*>(run.arena + buffer.offset) + static_cast<ptrdiff_t>(row) * buffer.width;
}

class KeepOp : public Op {
 public:
  KeepOp(const OpSpec& spec, const Builder& builder)
      : x_(spec.inputs.at(0)), cache_(cache_of(spec, builder, x_)), drafted_(spec.integer("drafted")) {}
  void run(const Run& run, const Worker& worker, int rows) const override {
    const Range mine = worker.share(drafted_ ? run.step.num_selected : rows);
    for (int i = mine.begin; i < mine.end; ++i) {
      const int t = drafted_ ? run.step.selected[i] : i;
      std::memcpy(cache_.row(run.step.slots[t]), row_of(run, x_, t), static_cast<size_t>(x_.width) * sizeof(float));
    }
    worker.sync();
  }

 private:
  BufferSpec x_;
  const HiddenCache& cache_;
  bool drafted_;
};

class RecallOp : public Op {
 public:
  RecallOp(const OpSpec& spec, const Builder& builder)
      : y_(spec.output), cache_(cache_of(spec, builder, y_)), block_size_(builder.kv.shape().block_size) {}
  void run(const Run& run, const Worker& worker, int rows) const override {
    const Range mine = worker.share(rows);
    int row = 0;
    for (int t = mine.begin; t < mine.end; ++t) {
      while (run.step.row_start[row + 1] <= t) ++row;
      recall(run, row, t);
    }
    worker.sync();
  }

 private:
  void recall(const Run& run, int row, int t) const {
    const auto bytes = static_cast<size_t>(y_.width) * sizeof(float);
    const int before = run.step.positions[t] - 1;
    if (before < 0) {
      std::memset(row_of(run, y_, t), 0, bytes);
      return;
    }
    const int32_t* table = run.step.block_table + static_cast<ptrdiff_t>(row) * run.step.table_width;
    const int slot = table[before / block_size_] * block_size_ + before % block_size_;
    std::memcpy(row_of(run, y_, t), cache_.row(slot), bytes);
  }

  BufferSpec y_;
  const HiddenCache& cache_;
  int block_size_;
};

class ExpandOp : public Op {
 public:
  ExpandOp(const OpSpec& spec, const Builder& builder)
      : x_(spec.inputs.at(0)), y_(spec.output), ids_(static_cast<size_t>(x_.width)) {
    const float* ids = builder.vector(spec.weight("ids"), x_.width);
    if (!builder.has_weights) return;
    for (size_t i = 0; i < ids_.size(); ++i) {
      ids_[i] = static_cast<int>(ids[i]);
      if (ids_[i] < 0 || ids_[i] >= y_.width || (i && ids_[i] <= ids_[i - 1]))
        throw std::invalid_argument("op 'expand': ids must ascend and be columns of its output");
    }
  }
  void run(const Run& run, const Worker& worker, int rows) const override {
    const Range mine = worker.share(rows);
    for (int i = mine.begin; i < mine.end; ++i) {
      const float* x = row_of(run, x_, i);
      float* y = row_of(run, y_, i);
      std::fill(y, y + y_.width, kAbsent);
      for (size_t j = 0; j < ids_.size(); ++j) y[ids_[j]] = x[j];
    }
    worker.sync();
  }

 private:
  BufferSpec x_, y_;
  std::vector<int> ids_;
};

}  // namespace

std::unique_ptr<Op> build_draft_op(const OpSpec& spec, const Builder& builder) {
  if (spec.kind == "keep") return std::make_unique<KeepOp>(spec, builder);
  if (spec.kind == "recall") return std::make_unique<RecallOp>(spec, builder);
  if (spec.kind == "expand") return std::make_unique<ExpandOp>(spec, builder);
  return nullptr;
}

}  // namespace vllm
