// A loaded model: weights, KV cache, programs, and the memory that running them takes.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/hidden_cache.h"
#include "runtime/isa.h"
#include "runtime/kv_cache.h"
#include "runtime/op.h"
#include "runtime/spec.h"
#include "runtime/step.h"
#include "runtime/thread_pool.h"

namespace vllm {

struct ModelSpec {
  std::string weights_path;
  std::map<std::string, WeightSpec> weights;
  KvShape kv;
  int vocab;
  int max_context;  // longest sequence
  std::shared_ptr<ThreadPool> pool;  // may be another model's too: they run one at a time
  std::string isa;
  std::shared_ptr<HiddenCache> hidden;  // shared by a target and its draft; null where there is none
};

class Model {
 public:
  // Maps the weights; without a path nothing is read, and the model can only be asked what it would take. Throws
  // Malformed for an index that does not fit the file, std::invalid_argument for what else does not fit together,
  // std::runtime_error for a file that cannot be mapped.
  explicit Model(ModelSpec spec);

  // Checks and builds a program, and sees to it that there is memory to run it. Returns its handle. Throws Malformed, with
  // nothing changed, for a program that could do anything but run.
  int add_program(const ProgramSpec& spec);

  // One forward. Throws std::invalid_argument before anything has been done if the step is malformed. One at a time.
  void run(int handle, const Step& step, const SamplingRows& sampling, const Outputs& outputs);

  const Isa& isa() const { return isa_; }
  int num_threads() const { return spec_.pool->size(); }
  const KvShape& kv_shape() const { return spec_.kv; }
  int vocab() const { return spec_.vocab; }
  int max_context() const { return spec_.max_context; }
  int max_tokens(int handle) const { return program(handle).max_tokens; }
  size_t weight_bytes() const { return weights_.size(); }
  size_t kv_bytes() const { return kv_.bytes(); }
  KvCache& kv() { return kv_; }
  size_t arena_bytes() const { return arena_.size() + shared_scratch_.size() + thread_scratch_.size(); }
  // Width of what Outputs::logits receives, and whether its rows are selected positions.
  const BufferSpec& result(int handle) const { return program(handle).result; }

 private:
  using Ops = std::vector<std::unique_ptr<Op>>;

  struct Program {
    int max_tokens;
    int max_samples;
    ProgramFacts facts{};
    int num_ops = 0;
    Ops token_ops{};
    Ops sample_ops{};
    BufferSpec result{};
  };

  const Program& program(int handle) const;
  Program build(const ProgramSpec& spec) const;
  PackedMatrix matrix(const std::string& name) const;
  const float* vector(const std::string& name, int length) const;
  const WeightSpec& weight(const std::string& name) const;
  void reserve(const Program& program);
  void prepare(const Program& program, const Step& step);
  void run_ops(const Ops& ops, const Run& run, const Worker& worker, int rows) const;
  void run_slices(const Program& program, Run run, const Worker& worker) const;
  void copy_result(const Program& program, const Run& run, const Worker& worker, int rows) const;

  ModelSpec spec_;
  const Isa& isa_;
  Mapping weights_;
  KvCache kv_;
  std::vector<std::unique_ptr<Program>> programs_;
  Mapping arena_, shared_scratch_, thread_scratch_;
  size_t thread_scratch_bytes_ = 0;
  std::vector<uint8_t> last_;
  std::vector<QueryBlock> queries_;
  int num_queries_ = 0;
  int heads_per_slice_ = 1;
  std::unique_ptr<std::atomic<int>[]> counters_;
  int num_counters_ = 0;
};

}  // namespace vllm
