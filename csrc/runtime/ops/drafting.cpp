// Ops of targets and drafts: keep, recall, expand. They move rows and compute nothing.
#include <algorithm>
#include <cstring>

#include "runtime/hidden_cache.h"
#include "runtime/op_reader.h"

namespace vllm {
namespace {

constexpr float kAbsent = -1e20f;  // ABSENT of vllm/targets/cpu/graph.py

const HiddenCache& cache_of(OpReader& read, const BufferSpec& buffer) {
  const HiddenCache* cache = read.builder().hidden;
  const KvShape& kv = read.builder().kv.shape();
  if (!cache) read.fail("it needs a hidden cache, the model has none");
  read.check(cache->width() == buffer.width, "the hidden cache has " + std::to_string(cache->width()) +
                                                 " columns, the buffer " + std::to_string(buffer.width));
  read.check(cache->num_slots() >= kv.num_blocks * kv.block_size,
             "the hidden cache has " + std::to_string(cache->num_slots()) + " slots, the KV cache " +
                 std::to_string(kv.num_blocks * kv.block_size));
  read.builder().facts.uses_hidden = true;
  return *cache;
}

class KeepOp : public Op {
 public:
  explicit KeepOp(OpReader& read) : x_(read.input(0)), cache_(cache_of(read, x_)), drafted_(read.flag("drafted")) {}
  void run(const Run& run, const Worker& worker, int rows) const override {
    const Range mine = worker.share(drafted_ ? run.step.num_selected : rows);
    for (int i = mine.begin; i < mine.end; ++i) {
      const int t = drafted_ ? run.step.selected[i] : i;
      std::memcpy(cache_.row(run.step.slots[t]), run.row(x_, t), static_cast<size_t>(x_.width) * sizeof(float));
    }
  }

 private:
  BufferSpec x_;
  const HiddenCache& cache_;
  bool drafted_;
};

class RecallOp : public RowOp {
 public:
  explicit RecallOp(OpReader& read)
      : y_(read.output()), cache_(cache_of(read, y_)), block_size_(read.builder().kv.shape().block_size) {}

 private:
  void run_rows(const Run& run, Range tokens) const override {
    int row = 0;
    for (int t = tokens.begin; t < tokens.end; ++t) {
      while (run.step.row_start[row + 1] <= t) ++row;
      recall(run, row, t);
    }
  }
  void recall(const Run& run, int row, int t) const {
    const auto bytes = static_cast<size_t>(y_.width) * sizeof(float);
    const int before = run.step.positions[t] - 1;
    if (before < 0) {
      std::memset(run.row(y_, t), 0, bytes);
      return;
    }
    const int32_t* table = run.step.block_table + static_cast<ptrdiff_t>(row) * run.step.table_width;
    const int slot = table[before / block_size_] * block_size_ + before % block_size_;
    std::memcpy(run.row(y_, t), cache_.row(slot), bytes);
  }

  BufferSpec y_;
  const HiddenCache& cache_;
  int block_size_;
};

class ExpandOp : public RowOp {
 public:
  explicit ExpandOp(OpReader& read)
      : x_(read.input(0)), y_(read.output()), ids_(static_cast<size_t>(x_.width)) {
    const float* ids = read.vector("ids", x_.width);
    if (!read.builder().has_weights) return;
    for (size_t i = 0; i < ids_.size(); ++i) {
      read.check(ids[i] >= 0.0f && ids[i] < static_cast<float>(y_.width), "an id is no column of its output");
      ids_[i] = static_cast<int>(ids[i]);
      read.check(i == 0 || ids_[i] > ids_[i - 1], "ids must ascend");
    }
  }

 private:
  void run_rows(const Run& run, Range rows) const override {
    for (int i = rows.begin; i < rows.end; ++i) {
      const float* x = run.row(x_, i);
      float* y = run.row(y_, i);
      std::fill(y, y + y_.width, kAbsent);
      for (size_t j = 0; j < ids_.size(); ++j) y[ids_[j]] = x[j];
    }
  }

  BufferSpec x_, y_;
  std::vector<int> ids_;
};

}  // namespace

std::unique_ptr<Op> build_keep(OpReader& read) { return std::make_unique<KeepOp>(read); }
std::unique_ptr<Op> build_recall(OpReader& read) { return std::make_unique<RecallOp>(read); }
std::unique_ptr<Op> build_expand(OpReader& read) { return std::make_unique<ExpandOp>(read); }

}  // namespace vllm
