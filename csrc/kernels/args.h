// What each kernel is told. Strides count elements of the pointer's type; rows are tokens or selected positions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"

namespace vllm {

// A packed [out, in] matrix: tiles of kTile outputs, `tile_bytes` apart. docs/cpu_core.md draws the formats.
struct PackedMatrix {
  Format format;
  const uint8_t* data;
  size_t tile_bytes;
  int num_out;
  int num_in;

  VLLM_ALWAYS_INLINE int num_tiles() const { return ceil_div(num_out, kTile); }
};

// Item: a token. y[t] = row token_ids[t] of `table`, times `scale`.
struct EmbedArgs {
  PackedMatrix table;
  const int32_t* token_ids;
  float* y;
  ptrdiff_t y_stride;
  float scale;
};

// Item: a row.
struct RmsNormArgs {
  const float* x;
  ptrdiff_t x_stride;
  const float* weight;
  float* y;
  ptrdiff_t y_stride;
  int dim;
  float eps;
};

// Item: a token. Row t of `angles`: cos of rotary_dim / 2 angles, then their sin, both times `factor`.
struct RotaryAnglesArgs {
  const int32_t* positions;
  const float* inv_freq;
  float* angles;
  int rotary_dim;
  float factor;
};

// A linear layer's input as its weights want it. bf16: `values` holds pairs. int8: groups of kGroup 8-bit values that
// share a scale, x = value * scale[row][g], rounded to nearest, padded with 0 to whole groups. With `total` a group's
// sum of values, start[row][g] = -zero * total, where the weights count from `zero`, and sum[row][g] = total *
// scale[row][g].
struct ConvertedRows {
  void* values;
  ptrdiff_t stride;
  float* scale;
  float* sum;
  int32_t* start;
  ptrdiff_t groups_stride;
  int zero;
};

// Item: a row. With `norm_weight`, the row is RMS-normalised first.
struct ConvertArgs {
  const float* x;
  ptrdiff_t x_stride;
  int dim;
  const float* norm_weight;
  float eps;
  ConvertedRows out;
};

enum class Epilogue : uint8_t {
  kStore,       // y = sum
  kAccumulate,  // y += sum
  kSiluMul,     // even tiles are gates, odd ones are ups: y = silu(gate) * up, half as wide
};

// Item: a tile of kTile outputs (kSiluMul: a pair of tiles), for all `rows`.
struct LinearArgs {
  PackedMatrix weight;
  ConvertedRows x;
  int rows;
  const float* bias;  // padded with 0 to whole tiles, or null
  float* y;
  ptrdiff_t y_stride;
  Epilogue epilogue;
};

// The KV cache of one layer, in cells: one float, a pair of bf16, or one byte. A head of a block is
//   keys    [block positions / 16][head_dim / per_cell][16 positions]   (pairs of neighbouring dimensions)
//   values  [block positions / per_cell][head_dim padded to 16]         (pairs of neighbouring positions)
//   kInt8:  float scale of keys [block positions], of values [block positions]
// Strides and offsets count 32 bits.
struct KvLayer {
  KvType type;
  uint32_t* data;
  size_t block_stride;
  size_t head_stride;
  size_t values_offset;
  size_t scales_offset;
  int block_size;
  int num_kv_heads;
  int head_dim;

  VLLM_ALWAYS_INLINE uint32_t* keys(int block, int head) const {
    return data + static_cast<size_t>(block) * block_stride + static_cast<size_t>(head) * head_stride;
  }
  VLLM_ALWAYS_INLINE uint32_t* values(int block, int head) const { return keys(block, head) + values_offset; }
  VLLM_ALWAYS_INLINE float* key_scales(int block, int head) const {
    return reinterpret_cast<float*>(keys(block, head) + scales_offset);
  }
  VLLM_ALWAYS_INLINE float* value_scales(int block, int head) const {
    return key_scales(block, head) + round_up(block_size, kLanes);
  }
};

// Item: one token's KV head with the query heads that share it (token * num_kv_heads + head).
struct RopeKvArgs {
  float* qkv;
  ptrdiff_t stride;
  const float* angles;  // row t: RotaryAnglesArgs
  const int32_t* slots;
  const uint8_t* last;  // 1 where the token is its row's last one
  const float* q_norm;  // or null
  const float* k_norm;
  KvLayer kv;
  int num_heads;
  int rotary_dim;
  float eps;
};

// A few queries of one row of the batch: tokens first .. first + count - 1, at consecutive positions.
struct QueryBlock {
  int row;
  int first;
  int count;
};

// Item: a query block's slice of query heads that share a KV head: block * slices + slice, `heads_per_slice` query
// heads each. `scratch` belongs to the calling thread.
struct AttentionArgs {
  const float* qkv;
  ptrdiff_t stride;
  float* y;
  ptrdiff_t y_stride;
  const int32_t* positions;
  const QueryBlock* blocks;
  const int32_t* block_table;
  ptrdiff_t block_table_stride;
  KvLayer kv;
  int num_heads;
  int slices;
  int heads_per_slice;
  float scale;
  int window;
  uint32_t* scratch;
};

// Most (token, head) pairs in an attention item.
inline constexpr int kAttentionRows = 12;

// Item: a row. x = [gate | up].
struct SiluMulArgs {
  const float* x;
  ptrdiff_t x_stride;
  float* y;
  ptrdiff_t y_stride;
  int dim;
};

// Items: tokens of the vocabulary. One struct for the passes that sampling makes over logits; each uses what it names.
//   vocab_divide   y = x / divisor
//   vocab_maxima   maxima[b] = the greatest of block b (kMaximaBlock logits; begin must start one)
//   vocab_collect  appends to ids the tokens with x >= bound, and adds their number to count
//   vocab_rank     adds to count the number of x > bound
//   vocab_sum_exp  adds the sum of exp(x - bound) to total, 16 lanes in token order
struct VocabArgs {
  const float* x;
  float* y;
  float divisor;
  float bound;
  float* maxima;
  int32_t* ids;
  int32_t count;
  double total;
};
inline constexpr int kMaximaBlock = 64;

// What a probe works on, and a number that depends on all it did.
struct ProbeArgs {
  const uint32_t* memory;
  float result;
};

}  // namespace vllm
