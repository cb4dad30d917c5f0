#include "runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

// Parameters with one value per row, by their names in vllm/sample/table.py.
#define SAMPLING_PARAMETERS(PARAMETER) \
  PARAMETER(float, presence_penalty)   \
  PARAMETER(float, frequency_penalty)  \
  PARAMETER(float, repetition_penalty) \
  PARAMETER(float, temperature)        \
  PARAMETER(float, top_p)              \
  PARAMETER(int32_t, top_k)            \
  PARAMETER(float, min_p)              \
  PARAMETER(uint64_t, seed)

namespace vllm {
namespace {

template <class T>
constexpr SamplingColumn::Type kColumnType = SamplingColumn::kFloat32;
template <>
constexpr SamplingColumn::Type kColumnType<int32_t> = SamplingColumn::kInt32;
template <>
constexpr SamplingColumn::Type kColumnType<uint64_t> = SamplingColumn::kUint64;

#define COLUMN(type, name) {#name, kColumnType<type>},
constexpr SamplingColumn kColumns[] = {SAMPLING_PARAMETERS(COLUMN)};
#undef COLUMN
static_assert(std::size(kColumns) <= SamplingRows::kMaxColumns);

// One row's values.
struct Parameters {
#define MEMBER(type, name) type name;
  SAMPLING_PARAMETERS(MEMBER)
#undef MEMBER

  Parameters(const SamplingRows& rows, int row) {
    const void* const* column = rows.columns;
#define READ(type, name) name = static_cast<const type*>(*column++)[row];
    SAMPLING_PARAMETERS(READ)
#undef READ
  }
};

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// exp(-18) < 2^-25: such a weight changes no float sum that begins with 1.
constexpr float kNegligible = 18.0f;
constexpr uint64_t kGolden = 0x9E3779B97F4A7C15;

uint64_t splitmix64(uint64_t z) {
  z += kGolden;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
  return z ^ (z >> 31);
}

float uniform(uint64_t seed, int32_t position) {
  const uint64_t bits = splitmix64(splitmix64(seed) + static_cast<uint64_t>(position) * kGolden) >> 40;
  return static_cast<float>(bits) * 0x1p-24f;
}

// Ascending keys are in order of (logit descending, id ascending).
uint64_t key_of(float logit, int32_t id) {
  uint32_t bits;
  const float normal = logit + 0.0f;
  std::memcpy(&bits, &normal, sizeof bits);
  const uint32_t ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~ascending) << 32 | static_cast<uint32_t>(id);
}

int32_t id_of(uint64_t key) { return static_cast<int32_t>(key & 0xffffffffu); }

template <class T>
T* take(uint8_t*& scratch, int count) {
  T* part = reinterpret_cast<T*>(scratch);
  scratch += align_up(static_cast<size_t>(count) * sizeof(T), 64);
  return part;
}

int num_blocks(int vocab) { return ceil_div(vocab, kMaximaBlock); }

bool penalizes(const Parameters& row) {
  return row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f || row.frequency_penalty != 0.0f;
}

bool changes_logits(const SamplingRows& rows, int row) {
  return rows.mask_index[row] >= 0 || rows.bias_offsets[row + 1] > rows.bias_offsets[row] ||
         penalizes(Parameters(rows, row)) || (rows.word_rows && rows.word_rows[row + 1] > rows.word_rows[row]);
}

}  // namespace

std::span<const SamplingColumn> sampling_columns() { return kColumns; }

bool all_finite(const float* logits, int vocab) {
  constexpr uint32_t kExponent = 0x7f800000;
  uint32_t found = 0;
  for (int i = 0; i < vocab; ++i) {
    uint32_t bits;
    std::memcpy(&bits, logits + i, sizeof bits);
    found |= (bits & kExponent) == kExponent;
  }
  return !found;
}

size_t Sampler::scratch_bytes(int vocab) {
  const size_t tokens = align_up(static_cast<size_t>(vocab), 64);
  return tokens * (3 * sizeof(float) + sizeof(uint64_t) + sizeof(int32_t)) + tokens / 64 * 2 * sizeof(float) + 256;
}

Sampler::Sampler(const KernelTable& kernels, int vocab, uint8_t* scratch) : kernels_(kernels), vocab_(vocab) {
  processed_ = take<float>(scratch, vocab);
  weights_ = take<float>(scratch, vocab);
  keys_ = take<uint64_t>(scratch, vocab);
  ids_ = take<int32_t>(scratch, vocab);
  counts_ = take<int32_t>(scratch, vocab);
  maxima_ = take<float>(scratch, num_blocks(vocab));
  ordered_ = take<float>(scratch, num_blocks(vocab));
}

float Sampler::block_maxima(const float* logits) const {
  VocabArgs args{};
  args.x = logits;
  args.maxima = maxima_;
  kernels_.vocab_maxima(args, 0, vocab_);
  return *std::max_element(maxima_, maxima_ + num_blocks(vocab_));
}

int Sampler::greatest(const float* logits) const {
  block_maxima(logits);
  const auto block = static_cast<int>(std::max_element(maxima_, maxima_ + num_blocks(vocab_)) - maxima_);
  const int begin = block * kMaximaBlock, end = std::min(vocab_, begin + kMaximaBlock);
  return static_cast<int>(std::max_element(logits + begin, logits + end) - logits);
}

int Sampler::sample(const float* logits, const SamplingRows& rows, int row, int default_top_k) const {
  if (changes_logits(rows, row)) {
    process(logits, rows, row);
    logits = processed_;
  }
  const float temperature = Parameters(rows, row).temperature;
  if (temperature == 0.0f) return greatest(logits);
  VocabArgs args{};
  args.x = logits;
  args.y = processed_;
  args.divisor = temperature;
  kernels_.vocab_divide(args, 0, vocab_);
  return draw(processed_, rows, row, default_top_k);
}

void Sampler::process(const float* logits, const SamplingRows& rows, int row) const {
  std::memcpy(processed_, logits, sizeof(float) * static_cast<size_t>(vocab_));
  if (rows.mask_index[row] >= 0) {
    const uint32_t* mask = rows.masks + rows.mask_index[row] * rows.mask_words;
    for (int i = 0; i < vocab_; ++i)
      if (!(mask[i / 32] >> i % 32 & 1)) processed_[i] = -kInfinity;
  }
  for (int i = rows.bias_offsets[row]; i < rows.bias_offsets[row + 1]; ++i) {
    const int32_t id = rows.bias_ids[i];
    if (id >= 0 && id < vocab_) processed_[id] += rows.bias_values[i];
  }
  if (rows.word_rows) forbid_bad_words(rows, row);
  penalize(rows, row);
}

void Sampler::forbid_bad_words(const SamplingRows& rows, int row) const {
  const int32_t* end = rows.history + rows.history_line[row] * rows.history_stride + rows.position[row];
  const int num_output = rows.position[row] - rows.num_prompt_tokens[row];
  for (int word = rows.word_rows[row]; word < rows.word_rows[row + 1]; ++word) {
    const int32_t* ids = rows.word_ids + rows.word_offsets[word];
    const int others = rows.word_offsets[word + 1] - rows.word_offsets[word] - 1;
    if (others < 0 || others > num_output || ids[others] < 0 || ids[others] >= vocab_) continue;
    if (std::equal(ids, ids + others, end - others)) processed_[ids[others]] = -kInfinity;
  }
}

void Sampler::penalize(const SamplingRows& rows, int row) const {
  const Parameters own(rows, row);
  if (!penalizes(own)) return;
  const float repetition = own.repetition_penalty, frequency = own.frequency_penalty, presence = own.presence_penalty;
  const int32_t* history = rows.history + rows.history_line[row] * rows.history_stride;
  // counts_ holds 1 + the times a token occurs in the output, for tokens that occur at all.
  int num_known = 0;
  const auto is_known = [this](int32_t id) { return id >= 0 && id < vocab_; };
  for (int i = 0; i < rows.position[row]; ++i)
    if (is_known(history[i])) counts_[history[i]] = 0;
  for (int i = 0; i < rows.position[row]; ++i) {
    const int32_t id = history[i];
    if (!is_known(id)) continue;
    if (counts_[id] == 0) {
      ids_[num_known++] = id;
      counts_[id] = 1;
    }
    counts_[id] += i >= rows.num_prompt_tokens[row];
  }
  for (int i = 0; i < num_known; ++i) {
    const int32_t id = ids_[i];
    float value = processed_[id];
    if (repetition != 1.0f) value = value > 0.0f ? value / repetition : value * repetition;
    if (counts_[id] > 1) {
      value -= frequency * static_cast<float>(counts_[id] - 1);
      value -= presence;
    }
    processed_[id] = value;
  }
}

// Leaves keys of the `count` greatest logits that are at least `bound`, in order, in keys_; returns how many there are.
int Sampler::most_likely(const float* logits, int count, float bound) const {
  const int blocks = num_blocks(vocab_);
  if (count == 0) return 0;
  if (count < blocks) {
    // At least `count` blocks have a logit as great as the count-th greatest maximum.
    std::copy(maxima_, maxima_ + blocks, ordered_);
    std::nth_element(ordered_, ordered_ + count - 1, ordered_ + blocks, std::greater<>());
    bound = std::max(bound, ordered_[count - 1]);
  }
  VocabArgs args{};
  args.bound = bound;
  args.ids = ids_;
  args.x = logits;
  for (int b = 0; b < blocks; ++b)
    if (maxima_[b] >= bound) kernels_.vocab_collect(args, b * kMaximaBlock, std::min(vocab_, (b + 1) * kMaximaBlock));
  for (int i = 0; i < args.count; ++i) keys_[i] = key_of(logits[ids_[i]], ids_[i]);
  if (args.count > count) {
    std::nth_element(keys_, keys_ + count, keys_ + args.count);
    args.count = count;
  }
  std::sort(keys_, keys_ + args.count);
  return args.count;
}

int Sampler::draw(const float* scaled, const SamplingRows& rows, int row, int default_top_k) const {
  const Parameters own(rows, row);
  int top_k = own.top_k > 0 ? own.top_k : default_top_k;
  if (top_k <= 0 || top_k > vocab_) top_k = vocab_;
  const float u = uniform(own.seed, rows.position[row]);
  const float best = block_maxima(scaled);
  if (!std::isfinite(best)) return greatest(scaled);
  int count = most_likely(scaled, top_k, best - kNegligible);
  for (int i = 0; i < count; ++i) weights_[i] = std::exp(scaled[id_of(keys_[i])] - best);
  if (own.min_p > 0.0f) {
    int likely = 0;
    while (likely < count && weights_[likely] >= own.min_p) ++likely;
    count = std::max(likely, 1);
  }
  for (int i = 1; i < count; ++i) weights_[i] += weights_[i - 1];
  if (own.top_p < 1.0f)
    count = std::min<int>(
        count,
        1 + static_cast<int>(std::lower_bound(weights_, weights_ + count, own.top_p * weights_[count - 1]) - weights_));
  const auto chosen = std::upper_bound(weights_, weights_ + count, u * weights_[count - 1]) - weights_;
  return id_of(keys_[std::min<ptrdiff_t>(chosen, count - 1)]);
}

void Sampler::report(const float* logits, int token, int num_top, const int32_t* named, int num_named,
                     const LogprobRows& out, int entry) const {
  VocabArgs args{};
  args.x = logits;
  const float peak = block_maxima(logits);
  args.bound = peak;
  kernels_.vocab_sum_exp(args, 0, vocab_);
  const double normaliser = static_cast<double>(peak) + std::log(args.total);
  const auto logprob = [&](int id) { return static_cast<float>(static_cast<double>(logits[id]) - normaliser); };
  args.bound = logits[token];
  kernels_.vocab_rank(args, 0, vocab_);
  out.token_id[entry] = token;
  out.logprob[entry] = logprob(token);
  out.rank[entry] = 1 + args.count;
  int32_t* ids = out.top_ids + entry * out.stride;
  float* logprobs = out.top_logprobs + entry * out.stride;
  const int found = most_likely(logits, std::min(num_top, vocab_), -kInfinity);
  for (int i = 0; i < found; ++i) ids[i] = id_of(keys_[i]);
  std::copy(named, named + num_named, ids + found);
  out.count[entry] = found + num_named;
  for (int i = 0; i < found + num_named; ++i) logprobs[i] = logprob(ids[i]);
}

}  // namespace vllm
