// Attention of a few queries over their row's KV cache, in three passes: scores, softmax, weighted sum of values.
//
// A query's scores are all there before its softmax, so there is one maximum and one sum a query, and no rescaling. Its
// arithmetic walks the KV from position 0 in steps of 16 lanes (scores), 16 lanes (sum) and one unit of positions
// (values); positions that it may not see add exact zeros. Hence it does not depend on the queries that share the item.
#pragma once

#include "kernels/args.h"
#include "kernels/linear/dot_block.h"
#include "simd/vec.h"

namespace vllm::VLLM_ISA {

// With so few rows an item is bound by reading the KV cache, which is too many short runs for the hardware to fetch
// ahead.
inline constexpr int kStreamedRows = 8;

VLLM_INLINE void prefetch_units(const uint32_t* p, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += kLanes) prefetch(p + i);
}

template <class Units>
struct Attention {
  static constexpr int kPer = Units::kPerUnit;

  const AttentionArgs& args;
  const QueryBlock& block;
  const int32_t* table;
  int first_head, kv_head, rows, dim, padded_dim;
  int origin, context;  // positions origin .. context - 1 are walked
  uint32_t* queries;
  ptrdiff_t queries_stride;
  float* scores;
  ptrdiff_t scores_stride;
  float* sums;

  Attention(const AttentionArgs& a, int item) : args(a), block(a.blocks[item / a.slices]) {
    table = a.block_table + block.row * a.block_table_stride;
    first_head = item % a.slices * a.heads_per_slice;
    kv_head = first_head / (a.num_heads / a.kv.num_kv_heads);
    rows = block.count * a.heads_per_slice;
    dim = a.kv.head_dim;
    padded_dim = round_up(dim, kLanes);
    const int first_position = a.positions[block.first];
    context = first_position + block.count;
    origin = a.window > 0 && first_position >= a.window ? (first_position - a.window + 1) / kLanes * kLanes : 0;
    queries = a.scratch;
    queries_stride = padded_dim;
    sums = reinterpret_cast<float*>(queries + kAttentionRows * queries_stride);
    scores = sums + kLanes;
    scores_stride = round_up(context - origin, 2 * kLanes) + kLanes;
  }

  void run() {
    for (int m = 0; m < rows; ++m) load_query(m);
    score();
    for (int m = 0; m < rows; ++m) softmax(m);
    for (int d = 0; d < padded_dim; d += 2 * kLanes) {
      if (padded_dim - d >= 2 * kLanes)
        weigh_values<2>(d);
      else
        weigh_values<1>(d);
    }
  }

  int token(int m) const { return block.first + m / args.heads_per_slice; }
  int head(int m) const { return first_head + m % args.heads_per_slice; }

  void load_query(int m) {
    const float* x = args.qkv + token(m) * args.stride + head(m) * dim;
    uint32_t* out = queries + m * queries_stride;
    for (int i = 0; i < dim; i += kLanes) {
      const f32x16 scaled = mul(dim - i < kLanes ? load(x + i, dim - i) : load(x + i), broadcast(args.scale));
      if constexpr (kPer == 1)
        store(reinterpret_cast<float*>(out) + i, scaled);
      else
        store_bf16(reinterpret_cast<uint16_t*>(out) + i, scaled);
    }
  }

  // Calls body(block, offset, first, count) for the runs of positions that lie in one block.
  template <class Body>
  VLLM_ALWAYS_INLINE void for_segments(Body&& body) const {
    const int size = args.kv.block_size;
    for (int position = origin; position < context;) {
      const int offset = position % size;
      const int count = size - offset < context - position ? size - offset : context - position;
      body(table[position / size], offset, position - origin, count);
      position += count;
    }
  }

  void score() {
    const int steps = dim / kPer;
    const ptrdiff_t tile = static_cast<ptrdiff_t>(steps) * kLanes;
    for_segments([&](int kv_block, int offset, int first, int count) {
      const uint32_t* keys = args.kv.keys(kv_block, kv_head) + offset / kLanes * tile;
      const uint32_t* values = args.kv.values(kv_block, kv_head) + static_cast<ptrdiff_t>(offset / kPer) * padded_dim;
      int i = 0;
      for (; i + kLanes < count; i += 2 * kLanes) {
        if (rows < kStreamedRows) {
          prefetch_units(keys + (i / kLanes + 2) * tile, 2 * tile);
          prefetch_units(values + static_cast<ptrdiff_t>(i / kPer) * padded_dim, 2 * kLanes / kPer * padded_dim);
        }
        score_tiles<2>(keys + i / kLanes * tile, tile, steps, first + i);
      }
      if (i < count) score_tiles<1>(keys + i / kLanes * tile, tile, steps, first + i);
    });
  }

  template <int N>
  VLLM_ALWAYS_INLINE void score_tiles(const uint32_t* keys, ptrdiff_t tile, int steps, int column) {
    for_row_blocks<kFloatRows>(rows, [&](auto count, int first) {
      constexpr int kM = decltype(count)::value;
      f32x16 acc[kM][N];
      VLLM_UNROLL for (int m = 0; m < kM; ++m) VLLM_UNROLL for (int n = 0; n < N; ++n) acc[m][n] = zeros();
      dot_vectors<Units, kM, N>(keys, kLanes, tile, queries + first * queries_stride, queries_stride, steps, acc);
      VLLM_UNROLL for (int m = 0; m < kM; ++m) VLLM_UNROLL for (int n = 0; n < N; ++n)
          store(scores + (first + m) * scores_stride + column + n * kLanes, acc[m][n]);
    });
  }

  // Scores become weights, in place, as units; the sum of row m goes to sums[m].
  void softmax(int m) {
    const int position = args.positions[token(m)];
    const int begin = (args.window > 0 && position >= args.window ? position - args.window + 1 : 0) - origin;
    const int end = position + 1 - origin, stop = context - origin;
    float* row = scores + m * scores_stride;
    const f32x16 nothing = broadcast(-__builtin_inff());
    f32x16 largest_yet = nothing;
    for (int i = 0; i < stop; i += kLanes) {
      f32x16 value = load(row + i);
      if (i < begin || i + kLanes > end) {
        value = select(visible(begin - i, end - i), value, nothing);
        store(row + i, value);
      }
      largest_yet = max(largest_yet, value);
    }
    const f32x16 peak = broadcast(largest(largest_yet));
    f32x16 total = zeros();
    for (int i = 0; i < stop; i += kLanes) {
      const f32x16 weight = exp(sub(load(row + i), peak));
      total = add(total, weight);
      if constexpr (kPer == 1)
        store(row + i, weight);
      else
        store_bf16(reinterpret_cast<uint16_t*>(row) + i, weight);
    }
    sums[m] = sum(total);
  }

  // Bits begin .. end - 1 of 16.
  static uint32_t visible(int begin, int end) {
    const uint32_t below_end = end >= kLanes ? 0xffffu : end <= 0 ? 0u : (1u << end) - 1;
    const uint32_t below_begin = begin >= kLanes ? 0xffffu : begin <= 0 ? 0u : (1u << begin) - 1;
    return below_end & ~below_begin;
  }

  template <int N>
  VLLM_ALWAYS_INLINE void weigh_values(int d) {
    for_row_blocks<kFloatRows>(rows, [&](auto count, int first_row) {
      constexpr int kM = decltype(count)::value;
      f32x16 acc[kM][N];
      VLLM_UNROLL for (int m = 0; m < kM; ++m) VLLM_UNROLL for (int n = 0; n < N; ++n) acc[m][n] = zeros();
      const auto* weights = reinterpret_cast<const uint32_t*>(scores) + first_row * scores_stride;
      for_segments([&](int kv_block, int offset, int first, int positions) {
        const uint32_t* values =
            args.kv.values(kv_block, kv_head) + static_cast<ptrdiff_t>(offset / kPer) * padded_dim + d;
        dot_vectors<Units, kM, N>(values, padded_dim, kLanes, weights + first / kPer, scores_stride,
                                ceil_div(positions, kPer), acc);
      });
      VLLM_UNROLL for (int m = 0; m < kM; ++m) {
        const f32x16 total = broadcast(sums[first_row + m]);
        float* y = args.y + token(first_row + m) * args.y_stride + head(first_row + m) * dim;
        VLLM_UNROLL for (int n = 0; n < N; ++n) {
          const int i = d + n * kLanes;
          if (dim - i >= kLanes)
            store(y + i, div(acc[m][n], total));
          else if (dim > i)
            store(y + i, div(acc[m][n], total), dim - i);
        }
      }
    });
  }
};

void attention(AttentionArgs& args, int begin, int end) {
  for (int item = begin; item < end; ++item) {
    if (args.kv.type == KvType::kF32)
      Attention<F32Units>(args, item).run();
    else
      Attention<Bf16Units>(args, item).run();
  }
}

}  // namespace vllm::VLLM_ISA
