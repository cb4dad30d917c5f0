// Programs and indexes of weights as somebody else may have written them: each mutant is refused, or runs within its own
// memory. AddressSanitizer and UndefinedBehaviorSanitizer say whether that holds.
//
//   fuzz_run SEED COUNT [SECONDS]    mutants SEED, SEED + 1, ..., until there were COUNT or so many seconds are over
//
// A mutant depends on its number alone: `fuzz_run NUMBER 1` shows one again.
#include <sanitizer/common_interface_defs.h>
#include <unistd.h>

#include <chrono>
#include <climits>
#include <csignal>
#include <exception>
#include <limits>

#include "tests/small_decoder.h"

namespace vllm::test {
namespace {

constexpr int kBlocks = 4, kSampled = 3;
constexpr unsigned kSecondsPerMutant = 120;

volatile unsigned current_mutant = 0;

void name_the_mutant() {
  char text[80];
  const int length = std::snprintf(text, sizeof text, "mutant %u is at fault: fuzz_run %u 1\n", current_mutant,
                                   current_mutant);
  if (write(STDERR_FILENO, text, static_cast<size_t>(length)) < 0) _exit(2);
}

}  // namespace
}  // namespace vllm::test

// Called by UndefinedBehaviorSanitizer, which does not call death callbacks.
extern "C" void __ubsan_on_report() { vllm::test::name_the_mutant(); }

namespace vllm::test {
namespace {

// All that an artifact says, as it is handed to the core.
struct Artifact {
  std::map<std::string, WeightSpec> weights;
  KvShape kv;
  int vocab;
  int hidden_width;
  ProgramSpec program;
};

class Mutator {
 public:
  Mutator(Artifact& artifact, unsigned seed) : artifact_(artifact), random_(seed) {}

  void mutate() {
    for (size_t i = 1 + below(3); i > 0; --i) mutate_once();
  }
  size_t below(size_t count) { return random_() % count; }

 private:
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return *(values.begin() + below(values.size()));
  }
  template <class Container>
  auto& element(Container& container) {
    auto at = container.begin();
    std::advance(at, below(container.size()));
    return *at;
  }

  void change(size_t& value) {
    const size_t arena = artifact_.program.arena_bytes;
    value = one_of<size_t>({0, 1, 4, 32, 63, 64, 65, 4096, arena, arena - 1, arena - 4, arena - 64, arena + 64, value + 4,
                            value + 64, value - 64, value * 2, value / 2, value ^ size_t{1} << below(64), size_t{1} << 20,
                            size_t{1} << 31, size_t{1} << 32, size_t{1} << 40, size_t{1} << 46, size_t{1} << 62,
                            size_t{1} << 63, SIZE_MAX, SIZE_MAX - 63});
  }
  void change(int& value) {
    value = one_of({INT_MIN, -64, -1, 0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 70, 96, 128, 1000, 1 << 15,
                    1 << 20, kMaxExtent, kMaxExtent + 1, 1 << 28, 1 << 30, INT_MAX - 31, INT_MAX - 1, INT_MAX,
                    static_cast<int>(static_cast<unsigned>(value) ^ 1u << below(32)), value / 2,
                    static_cast<int>(2u * static_cast<unsigned>(value))});
  }
  void change(double& value) {
    value = one_of({std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity(), -1e300, -2147483649.0,
                    -1.0, -0.0, 0.0, 1e-300, 0.5, 1.0, 2.0, 3.0, 5.0, 16.0, 64.0, 1e6, 2147483647.0, 2147483648.0, 4294967297.0,
                    1e19, 1e39, 1e300, value + 1, value * 2});
  }
  void change(KvType& type) { type = one_of({KvType::kF32, KvType::kBf16, KvType::kF8, KvType::kInt8}); }
  std::string kind() {
    return one_of({"embed", "rms_norm", "rotary_angles", "linear", "rope_kv", "attention", "silu_mul", "keep", "recall",
                   "select", "expand", "sample", "", "no such op"});
  }
  std::string format() {
    return one_of({"f32", "bf16", "int8", "int8_group", "q4", "q4_min", "q4_k", "f8", "f8_block", "vector", ""});
  }
  std::string role() { return one_of({"weight", "norm", "bias", "ids", "inv_freq", "q_norm", "k_norm", ""}); }
  std::string attribute() {
    return one_of({"layer", "num_heads", "num_kv_heads", "head_dim", "rotary_dim", "scale", "window", "eps", "accumulate",
                   "silu_mul", "drafted", "default_top_k", "attention_factor", ""});
  }
  std::string weight() { return below(9) ? element(artifact_.weights).first : std::string("no such weight"); }

  void mutate_once() {
    const size_t choice = below(20);
    if (choice < 12) return mutate(element(artifact_.program.ops));
    if (choice < 15) return mutate(element(artifact_.weights).second);
    if (choice < 17) return mutate_shape();
    mutate(artifact_.program);
  }
  void mutate(BufferSpec& buffer) {
    const size_t choice = below(5);
    if (choice < 2) return change(buffer.offset);
    if (choice < 4) return change(buffer.width);
    buffer.samples = !buffer.samples;
  }
  void mutate(OpSpec& op) {
    switch (below(12)) {
      case 0:
        op.kind = kind();
        break;
      case 1:
        if (!op.inputs.empty()) op.inputs.erase(op.inputs.begin() + static_cast<ptrdiff_t>(below(op.inputs.size())));
        break;
      case 2:
        op.inputs.push_back(element(artifact_.program.ops).output);
        break;
      case 3:
        op.weights[role()] = weight();
        break;
      case 4:
        if (!op.weights.empty()) op.weights.erase(element(op.weights).first);
        break;
      case 5:
      case 6:
        if (!op.attrs.empty()) change(element(op.attrs).second);
        break;
      case 7:
        change(op.attrs[attribute()]);
        break;
      case 8:
        if (!op.attrs.empty()) op.attrs.erase(element(op.attrs).first);
        break;
      case 9:
      case 10:
        if (!op.inputs.empty()) {
          mutate(element(op.inputs));
          break;
        }
        [[fallthrough]];
      default:
        mutate(op.output);
    }
  }
  void mutate(WeightSpec& spec) {
    switch (below(6)) {
      case 0:
        spec.format = format();
        break;
      case 1:
        change(spec.offset);
        break;
      case 2:
        change(spec.num_bytes);
        break;
      case 3:
        spec = element(artifact_.weights).second;
        break;
      case 4:
        spec.shape.resize(below(4), 1);
        break;
      default:
        if (!spec.shape.empty()) change(element(spec.shape));
    }
  }
  void mutate_shape() {
    switch (below(6)) {
      case 0:
        return change(artifact_.kv.num_layers);
      case 1:
        return change(artifact_.kv.num_kv_heads);
      case 2:
        return change(artifact_.kv.head_dim);
      case 3:
        return change(artifact_.kv.type);
      case 4:
        return change(artifact_.hidden_width);
      default:
        return change(artifact_.vocab);
    }
  }
  void mutate(ProgramSpec& program) {
    switch (below(6)) {
      case 0:
        return change(program.max_tokens);
      case 1:
        return change(program.max_samples);
      case 2:
        return change(program.arena_bytes);
      case 3:
        if (program.ops.size() > 1)
          program.ops.erase(program.ops.begin() + static_cast<ptrdiff_t>(below(program.ops.size())));
        break;
      case 4:
        program.ops.insert(program.ops.begin() + static_cast<ptrdiff_t>(below(program.ops.size())),
                           OpSpec(element(program.ops)));
        break;
      default:
        std::swap(element(program.ops), element(program.ops));
    }
  }

  Artifact& artifact_;
  std::mt19937 random_;
};

// A step of two rows, five tokens and three samples, one of them only scored; everything lies on the heap.
struct SmallStep {
  std::vector<int32_t> token_ids = {1, 5, 9, 69, 0}, positions = {0, 1, 2, 3, 40}, slots = {96, 97, 98, 99, 40},
                       row_start = {0, 4, 5}, context_len = {4, 41}, block_table = {3, 2, 0, 1}, selected = {4, 3, 0},
                       selected_row = {1, 0, 0}, given = {-1, -1, 2}, num_prompt_logprobs = {2, 2}, tokens{-1, -1, -1};

  Step view() const {
    return {.num_tokens = 5,
            .num_rows = 2,
            .num_selected = kSampled,
            .table_width = 2,
            .token_ids = token_ids.data(),
            .positions = positions.data(),
            .slots = slots.data(),
            .row_start = row_start.data(),
            .context_len = context_len.data(),
            .block_table = block_table.data(),
            .selected = selected.data(),
            .selected_row = selected_row.data(),
            .given_token = given.data(),
            .num_prompt_logprobs = num_prompt_logprobs.data(),
            .num_entries = 2};
  }
};

struct SmallSampling {
  std::vector<float> temperature{1, 0}, top_p{0.9f, 1}, min_p{0, 0}, ones{1, 1.1f}, zeros{0, 0.5f}, bias_values{1};
  std::vector<int32_t> top_k{3, 0}, position{4, 41}, history = std::vector<int32_t>(2 * 64, 1), line{0, 1}, prompt{2, 2},
      bias_offsets{0, 1, 1}, bias_ids{3}, mask_index{0, -1}, num_logprobs{2, 1}, named_offsets{0, 1, 1}, named{0};
  std::vector<uint64_t> seed{7, 8};
  std::vector<uint32_t> masks;

  explicit SmallSampling(int vocab) : masks(static_cast<size_t>(ceil_div(vocab, 32)), ~0u) { named[0] = vocab - 1; }

  SamplingRows view() const {
    return {.columns = {zeros.data(), zeros.data(), ones.data(), temperature.data(), top_p.data(), top_k.data(),
                        min_p.data(), seed.data()},
            .position = position.data(),
            .history = history.data(),
            .history_stride = 64,
            .history_line = line.data(),
            .num_prompt_tokens = prompt.data(),
            .bias_offsets = bias_offsets.data(),
            .bias_ids = bias_ids.data(),
            .bias_values = bias_values.data(),
            .mask_index = mask_index.data(),
            .masks = masks.data(),
            .mask_words = static_cast<ptrdiff_t>(masks.size()),
            .num_logprobs = num_logprobs.data(),
            .logprob_ids_offsets = named_offsets.data(),
            .logprob_ids = named.data()};
  }
};

struct SmallLogprobs {
  static constexpr int kColumns = 3;
  std::vector<int32_t> token_id = zeros(1), rank = zeros(1), count = zeros(1), top_ids = zeros(kColumns);
  std::vector<float> logprob = std::vector<float>(kSampled), top = std::vector<float>(kSampled* kColumns);

  static std::vector<int32_t> zeros(int columns) { return std::vector<int32_t>(static_cast<size_t>(kSampled * columns)); }
  LogprobRows view() {
    return {.token_id = token_id.data(),
            .logprob = logprob.data(),
            .rank = rank.data(),
            .count = count.data(),
            .top_ids = top_ids.data(),
            .top_logprobs = top.data(),
            .stride = kColumns};
  }
};

void run(const Artifact& artifact, const std::string& path, const std::string& isa,
         const std::shared_ptr<ThreadPool>& pool) {
  std::shared_ptr<HiddenCache> hidden;
  if (artifact.hidden_width) hidden = std::make_shared<HiddenCache>(kBlocks * kBlock, artifact.hidden_width);
  Model model({.weights_path = path,
               .weights = artifact.weights,
               .kv = artifact.kv,
               .vocab = artifact.vocab,
               .max_context = 2 * kBlock,
               .pool = pool,
               .isa = isa,
               .hidden = hidden});
  const int program = model.add_program(artifact.program);
  if (artifact.vocab < 3 || artifact.vocab > 1 << 16) return;
  SmallStep step;
  const SmallSampling sampling(artifact.vocab);
  SmallLogprobs logprobs;
  const BufferSpec& result = model.result(program);
  std::vector<float> logits(static_cast<size_t>(result.samples ? kSampled : 5) * static_cast<size_t>(result.width));
  const Outputs outputs{.tokens = step.tokens.data(), .logprobs = logprobs.view(), .logits = logits.data()};
  model.run(program, step.view(), sampling.view(), outputs);
}

// Whether the mutant was run; false if it was refused.
bool runs(unsigned mutant, const std::vector<Weights*>& weights, const std::vector<std::string>& isas,
          const std::shared_ptr<ThreadPool>& pool) {
  std::mt19937 random(mutant);
  const Weights& file = *weights[random() % weights.size()];
  const size_t choice = random() % 4;
  const ProgramSpec programs[] = {decoder(8, 2), decoder(32, 8), decoder(8, 8, true), drafter(5, 3)};
  Artifact artifact{.weights = file.specs,
                    .kv = {.type = KvType::kF32,
                           .num_layers = 1,
                           .num_kv_heads = kKvHeads,
                           .head_dim = kHeadDim,
                           .num_blocks = kBlocks,
                           .block_size = kBlock},
                    .vocab = kVocab,
                    .hidden_width = choice < 2 ? 0 : kDim,
                    .program = programs[choice]};
  Mutator mutator(artifact, static_cast<unsigned>(random()));
  if (mutant % 64) mutator.mutate();
  try {
    run(artifact, file.path, isas[mutator.below(isas.size())], pool);
    return true;
  } catch (const std::invalid_argument&) {
  } catch (const std::bad_alloc&) {
  }
  CHECK(mutant % 64);
  return false;
}

}  // namespace
}  // namespace vllm::test

int main(int count, char** words) {
  using namespace vllm;
  using namespace vllm::test;
  using Clock = std::chrono::steady_clock;
  CHECK(count == 3 || count == 4);
  const auto first = static_cast<unsigned>(std::strtoul(words[1], nullptr, 10));
  const auto wanted = static_cast<unsigned>(std::strtoul(words[2], nullptr, 10));
  const auto end = Clock::now() + std::chrono::seconds(count == 4 ? std::atoi(words[3]) : INT_MAX);
  __sanitizer_set_death_callback(name_the_mutant);
  std::set_terminate([] {
    name_the_mutant();
    std::abort();
  });
  std::signal(SIGALRM, [](int) {
    name_the_mutant();
    _exit(3);
  });
  Weights f32("f32"), bf16("bf16"), int8("int8"), group("int8_group"), q4("q4"), q4_min("q4_min"), q4_k("q4_k"), f8("f8"),
      f8_block("f8_block");
  const std::vector<Weights*> weights = {&f32, &bf16, &int8, &group, &q4, &q4_min, &q4_k, &f8, &f8_block};
  std::vector<std::string> isas;
  for (const Isa& isa : all_isas())
    if (isa.supported()) isas.emplace_back(isa.name);
  const auto pool = std::make_shared<ThreadPool>(std::vector<int>(2, -1));
  unsigned num_run = 0, num_done = 0;
  for (; num_done < wanted && Clock::now() < end; ++num_done) {
    current_mutant = first + num_done;
    alarm(kSecondsPerMutant);
    num_run += runs(first + num_done, weights, isas, pool);
  }
  std::printf("%u mutants from %u on: %u refused, %u ran, none did harm\n", num_done, first, num_done - num_run, num_run);
}
