// An op of a program, ready to run: buffers are arena offsets, weights are addresses, kernels are chosen.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
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
  std::atomic<int>* counters;  // one an op, 0 at the start of a step

  uint8_t* scratch_of(const Worker& worker) const {
    return thread_scratch + static_cast<size_t>(worker.index) * thread_scratch_bytes;
  }
};

// How much scratch an op wants.
struct ScratchBytes {
  size_t shared = 0;
  size_t thread = 0;
};

class HiddenCache;

// Where a program is built: what names mean. hidden: null without one.
struct Builder {
  const KernelTable& kernels;
  const KvCache& kv;
  std::function<PackedMatrix(const std::string& name)> matrix;
  std::function<const float*(const std::string& name, int length)> vector;
  int max_tokens;
  int max_samples;
  int max_context;
  const HiddenCache* hidden = nullptr;
  bool has_weights = true;  // false: nothing lies behind what `matrix` and `vector` return

  int max_rows(const BufferSpec& buffer) const { return buffer.samples ? max_samples : max_tokens; }
};

class Op {
 public:
  virtual ~Op() = default;
  // Runs on `rows` rows (tokens, or a slice of the selected positions), together with all other threads; every thread
  // has passed the op's last barrier when it returns.
  virtual void run(const Run& run, const Worker& worker, int rows) const = 0;
  virtual ScratchBytes scratch() const { return {}; }
};

// Throws std::invalid_argument for an unknown kind, missing weights or shapes that do not fit. `index`: its place in
// the program, and so of its counter.
std::unique_ptr<Op> build_op(const OpSpec& spec, const Builder& builder, int index);

// Query heads that attention takes at once, for a step of `num_queries` rows or tokens on `threads` threads.
int heads_per_slice(int num_heads, int num_kv_heads, int num_rows, int threads);

}  // namespace vllm
