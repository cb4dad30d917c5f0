// An op of a program, ready to run: buffers are arena offsets, weights are addresses, kernels are chosen.
//
// csrc/ops.inc lists the kinds of ops; each has a build_<kind> in runtime/ops/, which reads what the program says of it
// through an OpReader.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "kernels/table.h"
#include "runtime/kv_cache.h"
#include "runtime/spec.h"
#include "runtime/step.h"
#include "runtime/thread_pool.h"

namespace vllm {

// What a step has beyond its input: memory, and what is worked out once for all layers. Shared by all threads.
struct Run {
  Step step;
  SamplingRows sampling;
  Outputs outputs;
  uint8_t* arena;
  uint8_t* shared_scratch;
  uint8_t* thread_scratch;
  size_t thread_scratch_bytes;
  const uint8_t* last;         // [tokens] 1 where a token is its row's last one
  const QueryBlock* queries;   // attention's items, by
  int num_queries;             // blocks of tokens
  int heads_per_slice;         // and query heads
  int first_selected;          // sample ops run on slices of the selected positions
  std::atomic<int>* counters;  // one an op, 0 whenever the op begins

  uint8_t* scratch_of(const Worker& worker) const {
    return thread_scratch + static_cast<size_t>(worker.index) * thread_scratch_bytes;
  }
  float* rows(const BufferSpec& buffer) const { return reinterpret_cast<float*>(arena + buffer.offset); }
  float* row(const BufferSpec& buffer, int i) const { return rows(buffer) + static_cast<ptrdiff_t>(i) * buffer.width; }
};

// How much scratch an op wants.
struct ScratchBytes {
  size_t shared = 0;
  size_t thread = 0;
};

class HiddenCache;

// What the ops of a program have said of it while they were built.
struct ProgramFacts {
  size_t arena_bytes = 0;        // where the last buffer ends
  int num_embeddings = kMaxExtent;  // token ids must be below
  int num_heads = 0;             // of attention; 0: there is none
  std::set<int> layers{};        // of the KV cache that are worked on
  bool uses_hidden = false;      // the hidden cache is
};

// Where a program is built: what names mean. hidden: null without one.
struct Builder {
  const KernelTable& kernels;
  const KvCache& kv;
  std::function<PackedMatrix(const std::string& name)> matrix;
  std::function<const float*(const std::string& name, int length)> vector;
  int max_tokens;
  int max_samples;
  size_t arena_bytes;
  int vocab;
  int max_context;
  const HiddenCache* hidden;
  bool has_weights;  // false: nothing lies behind what `matrix` and `vector` return
  ProgramFacts& facts;

  int max_rows(const BufferSpec& buffer) const { return buffer.samples ? max_samples : max_tokens; }
};

class Op {
 public:
  virtual ~Op() = default;
  // A thread's part of the op, on `rows` rows: tokens, or a slice of the selected positions. All threads run it at once.
  // Model has them wait for each other after every op; an op that needs its threads to wait within says so itself.
  virtual void run(const Run& run, const Worker& worker, int rows) const = 0;
  virtual ScratchBytes scratch() const { return {}; }
};

// An op whose rows are shared out among the threads.
class RowOp : public Op {
 public:
  void run(const Run& run, const Worker& worker, int rows) const final { run_rows(run, worker.share(rows)); }

 protected:
  virtual void run_rows(const Run& run, Range rows) const = 0;
};

// An op that is one call of its kernel, whose items (`items_per_row` for each row) are shared out among the threads. What
// derives from it says what the kernel is told.
template <class Args>
class KernelOp : public Op {
 public:
  void run(const Run& run, const Worker& worker, int rows) const final {
    Args args = arguments(run);
    const Range mine = worker.share(rows * items_per_row_);
    kernel_(args, mine.begin, mine.end);
  }

 protected:
  using Kernel = void (*)(Args&, int begin, int end);
  explicit KernelOp(Kernel kernel, int items_per_row = 1) : kernel_(kernel), items_per_row_(items_per_row) {}
  virtual Args arguments(const Run& run) const = 0;

 private:
  Kernel kernel_;
  int items_per_row_;
};

// Throws Malformed for an op that cannot be run as it stands. place: in the program.
std::unique_ptr<Op> build_op(const OpSpec& spec, const Builder& builder, int place);

}  // namespace vllm
