#include "runtime/model.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace vllm {
namespace {

Format format_of(const std::string& name) {
  static const std::map<std::string, Format> formats = {
      {"f32", Format::kF32}, {"bf16", Format::kBf16},    {"int8", Format::kInt8}, {"int8_group", Format::kInt8Group},
      {"q4", Format::kQ4},   {"q4_min", Format::kQ4Min}, {"q4_k", Format::kQ4K},  {"f8", Format::kF8},
      {"f8_block", Format::kF8Block},
  };
  const auto found = formats.find(name);
  if (found == formats.end()) throw std::invalid_argument("unknown weight format '" + name + "'");
  return found->second;
}

// docs/cpu_core.md draws these.
size_t tile_bytes(Format format, int num_in) {
  const auto groups = static_cast<size_t>(ceil_div(num_in, kGroup));
  const size_t plane = groups * kTile * 2;
  switch (format) {
    case Format::kF32:
      return static_cast<size_t>(num_in) * kTile * 4;
    case Format::kBf16:
      return static_cast<size_t>(round_up(num_in, 2)) * kTile * 2;
    case Format::kInt8:
      return kTile * 4 + groups * kGroup * kTile;
    case Format::kInt8Group:
      return plane + groups * kGroup * kTile;
    case Format::kQ4:
      return plane + groups * kGroup * kTile / 2;
    case Format::kQ4Min:
      return 2 * plane + groups * kGroup * kTile / 2;
    case Format::kQ4K:
      return static_cast<size_t>(ceil_div(num_in, kGroup * kSuperGroups)) * kTile * 4 + plane +
             groups * kGroup * kTile / 2;
    case Format::kF8:
      return kTile * 4 + static_cast<size_t>(num_in) * kTile;
    case Format::kF8Block:
      return static_cast<size_t>(ceil_div(num_in, kF8Group)) * kTile * 4 + static_cast<size_t>(num_in) * kTile;
  }
  return 0;
}

// Bytes of a file that holds all of them.
size_t end_of(const std::map<std::string, WeightSpec>& weights) {
  size_t end = 0;
  for (const auto& [name, entry] : weights) end = std::max(end, entry.offset + entry.num_bytes);
  return align_up(end, 4096);
}

}  // namespace

Model::Model(ModelSpec spec)
    : spec_(std::move(spec)),
      isa_(find_isa(spec_.isa)),
      weights_(spec_.weights_path.empty() ? Mapping::reserve(end_of(spec_.weights))
                                          : Mapping::of_file(spec_.weights_path)),
      kv_(spec_.kv) {
  if (!spec_.pool) throw std::invalid_argument("a model needs threads");
  for (const auto& [name, entry] : spec_.weights)
    if (entry.offset % 64 || entry.offset > weights_.size() || entry.num_bytes > weights_.size() - entry.offset)
      throw std::invalid_argument("weight '" + name + "' lies outside " + spec_.weights_path +
                                  "; is the file complete?");
}

const WeightSpec& Model::weight(const std::string& name) const {
  const auto found = spec_.weights.find(name);
  if (found == spec_.weights.end()) throw std::invalid_argument("there is no weight '" + name + "'");
  return found->second;
}

PackedMatrix Model::matrix(const std::string& name) const {
  const WeightSpec& entry = weight(name);
  if (entry.shape.size() != 2 || entry.shape[0] < 1 || entry.shape[1] < 1)
    throw std::invalid_argument("weight '" + name + "' is not a matrix");
  const Format format = format_of(entry.format);
  const PackedMatrix matrix{format, weights_.data() + entry.offset, tile_bytes(format, entry.shape[1]), entry.shape[0],
                            entry.shape[1]};
  if (entry.num_bytes != matrix.tile_bytes * static_cast<size_t>(matrix.num_tiles()))
    throw std::invalid_argument("weight '" + name + "' has " + std::to_string(entry.num_bytes) +
                                " bytes, its format and shape make " +
                                std::to_string(matrix.tile_bytes * static_cast<size_t>(matrix.num_tiles())));
  return matrix;
}

const float* Model::vector(const std::string& name, int length) const {
  const WeightSpec& entry = weight(name);
  const size_t padded = static_cast<size_t>(round_up(length, kTile)) * sizeof(float);
  if (entry.format != "vector" || entry.shape != std::vector<int>{length} || entry.num_bytes != padded)
    throw std::invalid_argument("weight '" + name + "' is not a vector of " + std::to_string(length) + " numbers");
  return reinterpret_cast<const float*>(weights_.data() + entry.offset);
}

const Model::Program& Model::program(int handle) const {
  if (handle < 0 || handle >= static_cast<int>(programs_.size()))
    throw std::invalid_argument("there is no program " + std::to_string(handle));
  return *programs_[static_cast<size_t>(handle)];
}

int Model::add_program(const ProgramSpec& spec) {
  if (spec.max_tokens < 1 || spec.max_samples < 1 || spec.ops.empty())
    throw std::invalid_argument("a program needs ops, tokens and samples");
  const Builder builder{*isa_.kernels,
                        kv_,
                        [this](const std::string& name) { return matrix(name); },
                        [this](const std::string& name, int length) { return vector(name, length); },
                        spec.max_tokens,
                        spec.max_samples,
                        spec_.max_context,
                        spec_.hidden.get(),
                        !spec_.weights_path.empty()};
  auto program = std::make_unique<Program>();
  program->max_tokens = spec.max_tokens;
  program->max_samples = spec.max_samples;
  program->num_embeddings = spec_.vocab;
  int index = 0;
  for (const OpSpec& op : spec.ops) {
    const bool on_samples = op.kind == "sample" || op.output.samples;
    if (!on_samples && !program->sample_ops.empty())
      throw std::invalid_argument("op '" + op.kind + "' on tokens follows ops on samples");
    if (op.kind == "attention") {
      if (num_heads_ && num_heads_ != op.integer("num_heads"))
        throw std::invalid_argument("attention ops differ in num_heads");
      num_heads_ = op.integer("num_heads");
    }
    for (const BufferSpec& buffer : op.inputs)
      if (buffer.offset % 64 || buffer.offset >= spec.arena_bytes)
        throw std::invalid_argument("a buffer of op '" + op.kind + "' lies outside the arena");
    (on_samples ? program->sample_ops : program->token_ops).push_back(build_op(op, builder, index++));
    if (op.kind == "embed") program->num_embeddings = matrix(op.weights.at("weight")).num_out;
  }
  const OpSpec& last = spec.ops.back();
  program->result = last.kind == "sample" ? last.inputs.at(0) : last.output;
  reserve(spec, *program);
  programs_.push_back(std::move(program));
  return static_cast<int>(programs_.size()) - 1;
}

void Model::reserve(const ProgramSpec& spec, const Program& program) {
  ScratchBytes most;
  for (const auto* ops : {&program.token_ops, &program.sample_ops})
    for (const auto& op : *ops) {
      most.shared = std::max(most.shared, op->scratch().shared);
      most.thread = std::max(most.thread, op->scratch().thread);
    }
  if (spec.arena_bytes > arena_.size()) arena_ = Mapping::zeroed(spec.arena_bytes);
  if (most.shared > shared_scratch_.size()) shared_scratch_ = Mapping::zeroed(most.shared);
  if (most.thread > thread_scratch_bytes_) {
    thread_scratch_bytes_ = align_up(most.thread, 4096) + 64;
    thread_scratch_ = Mapping::zeroed(thread_scratch_bytes_ * static_cast<size_t>(num_threads()));
  }
  const auto tokens = static_cast<size_t>(spec.max_tokens);
  if (tokens > last_.size()) {
    last_.resize(tokens);
    queries_.resize(tokens);
  }
  if (static_cast<int>(spec.ops.size()) > num_counters_) {
    num_counters_ = static_cast<int>(spec.ops.size());
    counters_ = std::make_unique<std::atomic<int>[]>(spec.ops.size());
  }
}

void Model::prepare(const Step& step) {
  for (int i = 0; i < num_counters_; ++i) counters_[static_cast<size_t>(i)].store(0, std::memory_order_relaxed);
  heads_per_slice_ = num_heads_ ? heads_per_slice(num_heads_, spec_.kv.num_kv_heads, step.num_tokens, num_threads()) : 1;
  const int tokens_per_query = std::max(kAttentionRows / heads_per_slice_, 1);
  num_queries_ = 0;
  for (int row = 0; row < step.num_rows; ++row) {
    const int begin = step.row_start[row], end = step.row_start[row + 1];
    for (int t = begin; t < end; ++t) last_[static_cast<size_t>(t)] = t + 1 == end;
    for (int t = begin; t < end; t += tokens_per_query)
      queries_[static_cast<size_t>(num_queries_++)] = {row, t, std::min(tokens_per_query, end - t)};
  }
}

void Model::run(int handle, const Step& step, const SamplingRows& sampling, const Outputs& outputs) {
  const Program& program = this->program(handle);
  if (spec_.weights_path.empty()) throw std::invalid_argument("a model without weights cannot run");
  check_step(step, {program.max_tokens, program.num_embeddings, spec_.vocab, spec_.kv.num_blocks, spec_.kv.block_size});
  prepare(step);
  const Run run{step,
                sampling,
                outputs,
                arena_.data(),
                shared_scratch_.data(),
                thread_scratch_.data(),
                thread_scratch_bytes_,
                last_.data(),
                queries_.data(),
                num_queries_,
                heads_per_slice_,
                0,
                counters_.get()};
  spec_.pool->run([&](const Worker& worker) {
    for (const auto& op : program.token_ops) op->run(run, worker, step.num_tokens);
    if (!program.result.samples) copy_result(program, run, worker, step.num_tokens);
    run_slices(program, run, worker);
  });
}

void Model::run_slices(const Program& program, Run run, const Worker& worker) const {
  for (int first = 0; first < run.step.num_selected; first += program.max_samples) {
    run.first_selected = first;
    const int rows = std::min(program.max_samples, run.step.num_selected - first);
    for (const auto& op : program.sample_ops) op->run(run, worker, rows);
    if (program.result.samples) {
      copy_result(program, run, worker, rows);
      worker.sync();
    }
  }
}

void Model::copy_result(const Program& program, const Run& run, const Worker& worker, int rows) const {
  if (!run.outputs.logits) return;
  const auto width = static_cast<size_t>(program.result.width);
  const auto* result = reinterpret_cast<const float*>(run.arena + program.result.offset);
  const Range mine = worker.share(rows);
  for (int i = mine.begin; i < mine.end; ++i)
    std::memcpy(run.outputs.logits + static_cast<size_t>(run.first_selected + i) * width,
                result + static_cast<size_t>(i) * width, width * sizeof(float));
}

}  // namespace vllm
