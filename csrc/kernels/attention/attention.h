// Attention of a few queries over their row's KV cache, in three passes: scores, softmax, weighted sum of values.
//
// A query's scores are all there before its softmax, so there is one maximum and one sum a query, and no rescaling. Its
// arithmetic walks the KV from position 0 in steps of 16 lanes (scores), 16 lanes (sum) and one unit of positions
// (values); positions that it may not see add exact zeros. Hence it does not depend on the queries that share the item.
//
// Keys and values of 8 bits become floats on the way: in registers for a few queries; once for all of them, in a panel in
// the first-level cache, where there are more.
#pragma once

#include "kernels/args.h"
#include "kernels/attention/kv_cells.h"
#include "simd/vec.h"

namespace vllm::VLLM_ISA {

// With so few rows an item is bound by reading the KV cache, which is too many short runs for the hardware to fetch
// ahead.
inline constexpr int kStreamedRows = 8;

template <class Cell>
VLLM_INLINE void prefetch_cells(const Cell* p, ptrdiff_t count) {
  for (ptrdiff_t i = 0; i < count; i += ptrdiff_t{64 / sizeof(Cell)}) prefetch(p + i);
}

// A panel: the keys of two tiles of positions, or the values of some positions, two vectors wide.
inline constexpr int kPanelFloats = 8192;
inline constexpr int kPanelPositions = 128;

template <class Cells>
struct Attention {
  using Cell = typename Cells::Cell;
  static constexpr int kPer = Cells::kPerCell;

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
    if constexpr (Cells::kScaled) scale_weights();
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
    const f32x16 scale = broadcast(args.scale * Cells::kFactor);
    for (int i = 0; i < dim; i += kLanes) {
      const f32x16 scaled = mul(dim - i < kLanes ? load(x + i, dim - i) : load(x + i), scale);
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
      const Cell* keys = key_cells(kv_block) + offset / kLanes * tile;
      const Cell* values = value_cells(kv_block, offset);
      const float* scales = Cells::kScaled ? args.kv.key_scales(kv_block, kv_head) + offset : nullptr;
      int i = 0;
      for (; i + kLanes < count; i += 2 * kLanes) {
        if (rows < kStreamedRows) {
          prefetch_cells(keys + (i / kLanes + 2) * tile, 2 * tile);
          prefetch_cells(values + static_cast<ptrdiff_t>(i / kPer) * padded_dim, 2 * kLanes / kPer * padded_dim);
        }
        score_tiles<2>(keys + i / kLanes * tile, tile, steps, first + i, at(scales, i));
      }
      if (i < count) score_tiles<1>(keys + i / kLanes * tile, tile, steps, first + i, at(scales, i));
    });
  }

  static const float* at(const float* scales, int i) { return Cells::kScaled ? scales + i : nullptr; }
  const Cell* key_cells(int kv_block) const {
    return reinterpret_cast<const Cell*>(args.kv.keys(kv_block, kv_head));
  }
  const Cell* value_cells(int kv_block, int offset) const {
    return reinterpret_cast<const Cell*>(args.kv.values(kv_block, kv_head)) +
           static_cast<ptrdiff_t>(offset / kPer) * padded_dim;
  }

  template <int N>
  VLLM_ALWAYS_INLINE void score_tiles(const Cell* keys, ptrdiff_t tile, int steps, int column, const float* scales) {
    if constexpr (Cells::kBytes) {
      if (rows > Cells::kRows && N * tile <= kPanelFloats) {
        alignas(64) float panel[kPanelFloats];
        for (ptrdiff_t i = 0; i < N * tile; i += kLanes) Cells::unpack(keys + i, panel + i);
        return score_cells<F32Cells, N>(reinterpret_cast<const uint32_t*>(panel), tile, steps, column, scales);
      }
    }
    score_cells<Cells, N>(keys, tile, steps, column, scales);
  }

  template <class As, int N>
  VLLM_ALWAYS_INLINE void score_cells(const typename As::Cell* keys, ptrdiff_t tile, int steps, int column,
                                      const float* scales) {
    for_row_blocks<As::kRows>(rows, [&](auto count, int first) {
      constexpr int kM = decltype(count)::value;
      f32x16 acc[kM][N];
      VLLM_UNROLL for (int m = 0; m < kM; ++m) VLLM_UNROLL for (int n = 0; n < N; ++n) acc[m][n] = zeros();
      As::template dot<kM, N>(keys, kLanes, tile, queries + first * queries_stride, queries_stride, steps, acc);
      VLLM_UNROLL for (int m = 0; m < kM; ++m) VLLM_UNROLL for (int n = 0; n < N; ++n) {
        if constexpr (Cells::kScaled) acc[m][n] = mul(acc[m][n], load(scales + n * kLanes));
        store(scores + (first + m) * scores_stride + column + n * kLanes, acc[m][n]);
      }
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
    sums[m] = sum(total) * (1.0f / Cells::kFactor);
  }

  // Weights take in the scales of the values they are for. Past the context lie scales that mean nothing.
  void scale_weights() {
    for_segments([&](int kv_block, int offset, int first, int count) {
      const float* scales = args.kv.value_scales(kv_block, kv_head) + offset;
      for (int m = 0; m < rows; ++m) {
        float* weights = scores + m * scores_stride + first;
        for (int i = 0; i < count; i += kLanes) {
          const int n = count - i < kLanes ? count - i : kLanes;
          store(weights + i, mul(load(weights + i, n), load(scales + i, n)), n);
        }
      }
    });
  }

  // Bits begin .. end - 1 of 16.
  static uint32_t visible(int begin, int end) {
    const uint32_t below_end = end >= kLanes ? 0xffffu : end <= 0 ? 0u : (1u << end) - 1;
    const uint32_t below_begin = begin >= kLanes ? 0xffffu : begin <= 0 ? 0u : (1u << begin) - 1;
    return below_end & ~below_begin;
  }

  template <int N>
  VLLM_ALWAYS_INLINE void weigh_values(int d) {
    if constexpr (Cells::kBytes) {
      if (rows > Cells::kRows) return weigh_panels<N>(d);
    }
    for_row_blocks<Cells::kRows>(rows, [&](auto count, int first_row) {
      constexpr int kM = decltype(count)::value;
      f32x16 acc[kM][N];
      VLLM_UNROLL for (int m = 0; m < kM; ++m) VLLM_UNROLL for (int n = 0; n < N; ++n) acc[m][n] = zeros();
      const auto* weights = reinterpret_cast<const uint32_t*>(scores) + first_row * scores_stride;
      for_segments([&](int kv_block, int offset, int first, int positions) {
        Cells::template dot<kM, N>(value_cells(kv_block, offset) + d, padded_dim, kLanes, weights + first / kPer,
                                   scores_stride, ceil_div(positions, kPer), acc);
      });
      VLLM_UNROLL for (int m = 0; m < kM; ++m) finish_row<N>(first_row + m, d, acc[m]);
    });
  }

  // The same for 8-bit values and more rows than registers hold: every row's sums lie in memory between two panels.
  template <int N>
  VLLM_ALWAYS_INLINE void weigh_panels(int d) {
    alignas(64) float panel[kPanelPositions * N * kLanes];
    alignas(64) float totals[kAttentionRows][N * kLanes] = {};
    for_segments([&](int kv_block, int offset, int first, int positions) {
      for (int p = 0; p < positions; p += kPanelPositions) {
        const int steps = positions - p < kPanelPositions ? positions - p : kPanelPositions;
        const Cell* values = value_cells(kv_block, offset + p) + d;
        for (int s = 0; s < steps; ++s)
          VLLM_UNROLL for (int n = 0; n < N; ++n)
              Cells::unpack(values + s * padded_dim + n * kLanes, panel + (s * N + n) * kLanes);
        for_row_blocks<kFloatRows>(rows, [&](auto count, int first_row) {
          constexpr int kM = decltype(count)::value;
          f32x16 acc[kM][N];
          VLLM_UNROLL for (int m = 0; m < kM; ++m) VLLM_UNROLL for (int n = 0; n < N; ++n)
              acc[m][n] = load(totals[first_row + m] + n * kLanes);
          const auto* weights = reinterpret_cast<const uint32_t*>(scores + first_row * scores_stride + first + p);
          dot_vectors<F32Units, kM, N>(reinterpret_cast<const uint32_t*>(panel), N * kLanes, kLanes, weights,
                                       scores_stride, steps, acc);
          VLLM_UNROLL for (int m = 0; m < kM; ++m) VLLM_UNROLL for (int n = 0; n < N; ++n)
              store(totals[first_row + m] + n * kLanes, acc[m][n]);
        });
      }
    });
    for (int m = 0; m < rows; ++m) {
      f32x16 acc[N];
      VLLM_UNROLL for (int n = 0; n < N; ++n) acc[n] = load(totals[m] + n * kLanes);
      finish_row<N>(m, d, acc);
    }
  }

  // Dimensions d and up of row m's output.
  template <int N>
  VLLM_ALWAYS_INLINE void finish_row(int m, int d, const f32x16 (&acc)[N]) {
    const f32x16 total = broadcast(sums[m]);
    float* y = args.y + token(m) * args.y_stride + head(m) * dim;
    VLLM_UNROLL for (int n = 0; n < N; ++n) {
      const int i = d + n * kLanes;
      if (dim - i >= kLanes)
        store(y + i, div(acc[n], total));
      else if (dim > i)
        store(y + i, div(acc[n], total), dim - i);
    }
  }
};

void attention(AttentionArgs& args, int begin, int end) {
  for (int item = begin; item < end; ++item) {
    switch (args.kv.type) {
      case KvType::kF32:
        Attention<F32Cells>(args, item).run();
        break;
      case KvType::kBf16:
        Attention<Bf16Cells>(args, item).run();
        break;
      case KvType::kF8:
        Attention<F8Cells>(args, item).run();
        break;
      case KvType::kInt8:
        Attention<Int8Cells>(args, item).run();
        break;
    }
  }
}

}  // namespace vllm::VLLM_ISA
