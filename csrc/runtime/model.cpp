#include "runtime/model.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

namespace vllm {
namespace {

// More than any machine has: sums of a few of these do not overflow.
constexpr size_t kMostBytes = size_t{1} << 46;

Format format_of(const std::string& name) {
  static const std::map<std::string, Format> formats = {
      {"f32", Format::kF32}, {"bf16", Format::kBf16},    {"int8", Format::kInt8}, {"int8_group", Format::kInt8Group},
      {"q4", Format::kQ4},   {"q4_min", Format::kQ4Min}, {"q4_k", Format::kQ4K},  {"f8", Format::kF8},
      {"f8_block", Format::kF8Block},
  };
  const auto found = formats.find(name);
  if (found == formats.end()) throw Malformed("unknown weight format '" + name + "'");
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
  for (const auto& [name, entry] : weights) {
    if (entry.offset > kMostBytes || entry.num_bytes > kMostBytes)
      throw Malformed("weight '" + name + "' lies beyond any file");
    end = std::max(end, entry.offset + entry.num_bytes);
  }
  return align_up(end, 4096);
}

std::string described(const WeightSpec& weight) {
  std::string text = weight.format + " of";
  for (const int extent : weight.shape) text += " " + std::to_string(extent);
  return text + ", " + std::to_string(weight.num_bytes) + " bytes";
}

// Query heads that attention takes at once, for a step of `num_rows` rows or tokens on `threads` threads.
int heads_per_slice(int num_heads, int num_kv_heads, int num_rows, int threads) {
  const int group = num_heads / num_kv_heads;
  int heads = 1;
  // Few rows: slices of one head, so that threads share the work evenly.
  if (num_rows * num_kv_heads < 4 * threads && threads > 1) return heads;
  for (int candidate = 1; candidate <= group && candidate <= kAttentionRows; ++candidate)
    if (group % candidate == 0) heads = candidate;
  return heads;
}

}  // namespace

Model::Model(ModelSpec spec)
    : spec_(std::move(spec)),
      isa_(find_isa(spec_.isa)),
      weights_(spec_.weights_path.empty() ? Mapping::reserve(end_of(spec_.weights))
                                          : Mapping::of_file(spec_.weights_path)),
      kv_(spec_.kv) {
  if (!spec_.pool) throw std::invalid_argument("a model needs threads");
  if (spec_.max_context < 1 || spec_.max_context > kMaxExtent)
    throw std::invalid_argument("max_context is " + std::to_string(spec_.max_context) + "; it must be 1 to " +
                                std::to_string(kMaxExtent));
  for (const auto& [name, entry] : spec_.weights)
    if (entry.offset % 64 || entry.offset > weights_.size() || entry.num_bytes > weights_.size() - entry.offset)
      throw Malformed("weight '" + name + "' lies outside " + spec_.weights_path + "; is the file complete?");
}

const WeightSpec& Model::weight(const std::string& name) const {
  const auto found = spec_.weights.find(name);
  if (found == spec_.weights.end()) throw Malformed("there is no weight '" + name + "'");
  return found->second;
}

PackedMatrix Model::matrix(const std::string& name) const {
  const WeightSpec& entry = weight(name);
  const auto fits = [](int extent) { return extent >= 1 && extent <= kMaxExtent; };
  if (entry.shape.size() != 2 || !fits(entry.shape[0]) || !fits(entry.shape[1]))
    throw Malformed("weight '" + name + "' is not a matrix: " + described(entry));
  const Format format = format_of(entry.format);
  const PackedMatrix matrix{.format = format,
                            .data = weights_.data() + entry.offset,
                            .tile_bytes = tile_bytes(format, entry.shape[1]),
                            .num_out = entry.shape[0],
                            .num_in = entry.shape[1]};
  const size_t needed = saturating_product({matrix.tile_bytes, static_cast<size_t>(matrix.num_tiles())});
  if (entry.num_bytes != needed)
    throw Malformed("weight '" + name + "' is " + described(entry) + "; its format and shape make " +
                    std::to_string(needed));
  return matrix;
}

const float* Model::vector(const std::string& name, int length) const {
  const WeightSpec& entry = weight(name);
  const size_t padded = align_up(static_cast<size_t>(length), kTile) * sizeof(float);
  if (entry.format != "vector" || entry.shape != std::vector<int>{length} || entry.num_bytes != padded)
    throw Malformed("weight '" + name + "' is not a vector of " + std::to_string(length) + " numbers: " +
                    described(entry));
  return reinterpret_cast<const float*>(weights_.data() + entry.offset);
}

const Model::Program& Model::program(int handle) const {
  if (handle < 0 || handle >= static_cast<int>(programs_.size()))
    throw std::invalid_argument("there is no program " + std::to_string(handle));
  return *programs_[static_cast<size_t>(handle)];
}

int Model::add_program(const ProgramSpec& spec) {
  auto program = std::make_unique<Program>(build(spec));
  reserve(*program);
  programs_.push_back(std::move(program));
  return static_cast<int>(programs_.size()) - 1;
}

Model::Program Model::build(const ProgramSpec& spec) const {
  const auto fits = [](int rows) { return rows >= 1 && rows <= kMaxExtent; };
  if (!fits(spec.max_tokens) || !fits(spec.max_samples) || spec.ops.empty() || spec.arena_bytes > kMostBytes)
    throw Malformed("a program needs ops, tokens, samples and an arena, and as many as there can be");
  Program program{.max_tokens = spec.max_tokens, .max_samples = spec.max_samples};
  const Builder builder{.kernels = *isa_.kernels,
                        .kv = kv_,
                        .matrix = [this](const std::string& name) { return matrix(name); },
                        .vector = [this](const std::string& name, int length) { return vector(name, length); },
                        .max_tokens = spec.max_tokens,
                        .max_samples = spec.max_samples,
                        .arena_bytes = spec.arena_bytes,
                        .vocab = spec_.vocab,
                        .max_context = spec_.max_context,
                        .hidden = spec_.hidden.get(),
                        .has_weights = !spec_.weights_path.empty(),
                        .facts = program.facts};
  for (const OpSpec& op : spec.ops) {
    if (!op.output.samples && !program.sample_ops.empty())
      throw Malformed("op '" + op.kind + "' on tokens follows ops on samples");
    auto& ops = op.output.samples ? program.sample_ops : program.token_ops;
    ops.push_back(build_op(op, builder, program.num_ops++));
  }
  if (static_cast<int>(program.facts.layers.size()) != spec_.kv.num_layers)
    throw Malformed("the program works on " + std::to_string(program.facts.layers.size()) + " layers, the KV cache has " +
                    std::to_string(spec_.kv.num_layers));
  if (spec_.hidden && !program.facts.uses_hidden) throw Malformed("the program does not work on the hidden cache");
  program.result = spec.ops.back().output;
  return program;
}

void Model::reserve(const Program& program) {
  ScratchBytes most;
  for (const auto* ops : {&program.token_ops, &program.sample_ops})
    for (const auto& op : *ops) {
      most.shared = std::max(most.shared, op->scratch().shared);
      most.thread = std::max(most.thread, op->scratch().thread);
    }
  if (program.facts.arena_bytes > arena_.size()) arena_ = Mapping::zeroed(program.facts.arena_bytes);
  if (most.shared > shared_scratch_.size()) shared_scratch_ = Mapping::zeroed(most.shared);
  if (most.thread > thread_scratch_bytes_) {
    const size_t bytes = align_up(most.thread, 4096) + 64;
    thread_scratch_ = Mapping::zeroed(saturating_product({bytes, static_cast<size_t>(num_threads())}));
    thread_scratch_bytes_ = bytes;
  }
  const auto tokens = static_cast<size_t>(program.max_tokens);
  if (tokens > last_.size()) {
    last_.resize(tokens);
    queries_.resize(tokens);
  }
  if (program.num_ops > num_counters_) {
    counters_ = std::make_unique<std::atomic<int>[]>(static_cast<size_t>(program.num_ops));
    num_counters_ = program.num_ops;
  }
}

void Model::prepare(const Program& program, const Step& step) {
  for (int i = 0; i < num_counters_; ++i) counters_[static_cast<size_t>(i)].store(0, std::memory_order_relaxed);
  heads_per_slice_ = 1;
  if (program.facts.num_heads)
    heads_per_slice_ =
        heads_per_slice(program.facts.num_heads, spec_.kv.num_kv_heads, step.num_tokens, num_threads());
  const int tokens_per_query = std::max(kAttentionRows / heads_per_slice_, 1);
  num_queries_ = 0;
  for (int row = 0; row < step.num_rows; ++row) {
    const int begin = step.row_start[row], end = step.row_start[row + 1];
    for (int t = begin; t < end; ++t) last_[static_cast<size_t>(t)] = t + 1 == end;
    for (int t = begin; t < end; t += tokens_per_query)
      queries_[static_cast<size_t>(num_queries_++)] = {
          .row = row, .first = t, .count = std::min(tokens_per_query, end - t)};
  }
}

void Model::run(int handle, const Step& step, const SamplingRows& sampling, const Outputs& outputs) {
  const Program& program = this->program(handle);
  if (spec_.weights_path.empty()) throw std::invalid_argument("a model without weights cannot run");
  check_step(step, {.max_tokens = program.max_tokens,
                    .num_embeddings = program.facts.num_embeddings,
                    .vocab = spec_.vocab,
                    .num_blocks = spec_.kv.num_blocks,
                    .block_size = spec_.kv.block_size,
                    .max_context = spec_.max_context});
  prepare(program, step);
  const Run run{.step = step,
                .sampling = sampling,
                .outputs = outputs,
                .arena = arena_.data(),
                .shared_scratch = shared_scratch_.data(),
                .thread_scratch = thread_scratch_.data(),
                .thread_scratch_bytes = thread_scratch_bytes_,
                .last = last_.data(),
                .queries = queries_.data(),
                .num_queries = num_queries_,
                .heads_per_slice = heads_per_slice_,
                .first_selected = 0,
                .counters = counters_.get()};
  spec_.pool->run([&](const Worker& worker) {
    run_ops(program.token_ops, run, worker, step.num_tokens);
    if (!program.result.samples) copy_result(program, run, worker, step.num_tokens);
    run_slices(program, run, worker);
  });
}

// The one place where threads wait for each other between ops.
void Model::run_ops(const Ops& ops, const Run& run, const Worker& worker, int rows) const {
  for (const auto& op : ops) {
    op->run(run, worker, rows);
    worker.sync();
  }
}

void Model::run_slices(const Program& program, Run run, const Worker& worker) const {
  for (int first = 0; first < run.step.num_selected; first += program.max_samples) {
    run.first_selected = first;
    const int rows = std::min(program.max_samples, run.step.num_selected - first);
    run_ops(program.sample_ops, run, worker, rows);
    if (program.result.samples) copy_result(program, run, worker, rows);
    if (first + program.max_samples >= run.step.num_selected) break;
    if (worker.index == 0)
      for (int i = static_cast<int>(program.token_ops.size()); i < program.num_ops; ++i)
        run.counters[i].store(0, std::memory_order_relaxed);
    worker.sync();
  }
}

void Model::copy_result(const Program& program, const Run& run, const Worker& worker, int rows) const {
  if (!run.outputs.logits) return;
  const auto width = static_cast<size_t>(program.result.width);
  const Range mine = worker.share(rows);
  for (int i = mine.begin; i < mine.end; ++i)
    std::memcpy(run.outputs.logits + static_cast<size_t>(run.first_selected + i) * width, run.row(program.result, i),
                width * sizeof(float));
}

}  // namespace vllm
