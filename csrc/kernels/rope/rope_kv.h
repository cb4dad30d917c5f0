// Rotary embedding of queries and keys, with their norms, and the write into the KV cache.
#pragma once

#include "kernels/args.h"
#include "kernels/norm/rms_norm.h"
#include "simd/vec.h"

namespace vllm::VLLM_ISA {

void rotary_angles(RotaryAnglesArgs& args, int begin, int end) {
  const int half = args.rotary_dim / 2;
  for (int t = begin; t < end; ++t) {
    float* cosines = args.angles + static_cast<ptrdiff_t>(t) * args.rotary_dim;
    for (int i = 0; i < half; ++i) {
      const float angle = static_cast<float>(args.positions[t]) * args.inv_freq[i];
      cosines[i] = ::cosf(angle) * args.factor;
      cosines[half + i] = ::sinf(angle) * args.factor;
    }
  }
}

// Rotates the first rotary_dim of a head: halves (a, b) become (a cos - b sin, b cos + a sin).
VLLM_INLINE void rotate(float* head, const float* angles, int rotary_dim) {
  const int half = rotary_dim / 2;
  for (int i = 0; i < half; i += kLanes) {
    const int n = half - i < kLanes ? half - i : kLanes;
    const f32x16 cosine = load(angles + i, n), sine = load(angles + half + i, n);
    const f32x16 a = load(head + i, n), b = load(head + half + i, n);
    store(head + i, sub(mul(a, cosine), mul(b, sine)), n);
    store(head + half + i, add(mul(b, cosine), mul(a, sine)), n);
  }
}

VLLM_INLINE void write_f32(const KvLayer& kv, int block, int head, int offset, const float* key, const float* value) {
  const int dim = kv.head_dim;
  auto* k = reinterpret_cast<float*>(kv.keys(block, head)) + offset / kLanes * kLanes * dim + offset % kLanes;
  for (int i = 0; i < dim; ++i) k[i * kLanes] = key[i];
  std::memcpy(kv.values(block, head) + offset * round_up(dim, kLanes), value, sizeof(float) * static_cast<size_t>(dim));
}

// Pairs of positions share a unit: a row's last token leaves 0 in the other half, so that nothing stale is ever
// multiplied.
VLLM_INLINE void write_bf16(const KvLayer& kv, int block, int head, int offset, const float* key, const float* value,
                            bool last) {
  const int dim = kv.head_dim, padded = round_up(dim, kLanes), pairs = dim / 2;
  uint32_t* k = kv.keys(block, head) + offset / kLanes * kLanes * pairs + offset % kLanes;
  auto* v = reinterpret_cast<uint16_t*>(kv.values(block, head) + offset / 2 * padded) + offset % 2;
  const bool clear = last && offset % 2 == 0;
  for (int i = 0; i < dim; i += kLanes) {
    const int n = dim - i < kLanes ? dim - i : kLanes;
    alignas(32) uint16_t half[kLanes];
    store_bf16(half, load(key + i, n));
    for (int j = 0; j < n / 2; ++j) std::memcpy(&k[(i / 2 + j) * kLanes], &half[2 * j], sizeof(uint32_t));
    store_bf16(half, load(value + i, n));
    for (int j = 0; j < n; ++j) v[2 * (i + j)] = half[j];
    if (clear)
      for (int j = 0; j < n; ++j) v[2 * (i + j) + 1] = 0;
  }
}

// Into a cache of bytes: round_key and round_value turn 16 numbers into bytes.
template <class RoundKey, class RoundValue>
VLLM_INLINE void write_bytes(const KvLayer& kv, int block, int head, int offset, const float* key, const float* value,
                             RoundKey&& round_key, RoundValue&& round_value) {
  const int dim = kv.head_dim;
  auto* k = reinterpret_cast<uint8_t*>(kv.keys(block, head)) + offset / kLanes * kLanes * dim + offset % kLanes;
  auto* v = reinterpret_cast<uint8_t*>(kv.values(block, head)) + offset * round_up(dim, kLanes);
  for (int i = 0; i < dim; i += kLanes) {
    const int n = dim - i < kLanes ? dim - i : kLanes;
    uint8_t rounded[kLanes];
    round_key(rounded, load(key + i, n));
    for (int j = 0; j < n; ++j) k[(i + j) * kLanes] = rounded[j];
    round_value(rounded, load(value + i, n));
    std::memcpy(v + i, rounded, static_cast<size_t>(n));
  }
}

VLLM_INLINE float largest_size(const float* x, int dim) {
  f32x16 most = zeros();
  for (int i = 0; i < dim; i += kLanes) most = max(abs(load(x + i, dim - i < kLanes ? dim - i : kLanes)), most);
  return largest(most);
}

// A scale for the token's key in this head, and one for its value: x = code * scale.
VLLM_INLINE void write_int8(const KvLayer& kv, int block, int head, int offset, const float* key, const float* value) {
  const float key_size = largest_size(key, kv.head_dim), value_size = largest_size(value, kv.head_dim);
  const auto round_by = [](float size) {
    return [inverse = size > 0.0f ? 127.0f / size : 0.0f](uint8_t* out, f32x16 x) {
      store_int8(reinterpret_cast<int8_t*>(out), to_int(mul(x, broadcast(inverse))));
    };
  };
  write_bytes(kv, block, head, offset, key, value, round_by(key_size), round_by(value_size));
  kv.key_scales(block, head)[offset] = key_size / 127.0f;
  kv.value_scales(block, head)[offset] = value_size / 127.0f;
}

// Writes one head's key and value at `offset` of a block.
VLLM_INLINE void write_kv(const KvLayer& kv, int block, int head, int offset, const float* key, const float* value,
                          bool last) {
  switch (kv.type) {
    case KvType::kF32:
      return write_f32(kv, block, head, offset, key, value);
    case KvType::kBf16:
      return write_bf16(kv, block, head, offset, key, value, last);
    case KvType::kF8:
      return write_bytes(kv, block, head, offset, key, value, store_f8, store_f8);
    case KvType::kInt8:
      return write_int8(kv, block, head, offset, key, value);
  }
}

void rope_kv(RopeKvArgs& args, int begin, int end) {
  const int dim = args.kv.head_dim, kv_heads = args.kv.num_kv_heads, group = args.num_heads / kv_heads;
  for (int item = begin; item < end; ++item) {
    const int token = item / kv_heads, kv_head = item % kv_heads;
    float* row = args.qkv + token * args.stride;
    const float* angles = args.angles + static_cast<ptrdiff_t>(token) * args.rotary_dim;
    for (int h = kv_head * group; h < (kv_head + 1) * group; ++h) {
      float* query = row + h * dim;
      if (args.q_norm) normalize(query, args.q_norm, query, dim, args.eps);
      rotate(query, angles, args.rotary_dim);
    }
    float* key = row + (args.num_heads + kv_head) * dim;
    if (args.k_norm) normalize(key, args.k_norm, key, dim, args.eps);
    rotate(key, angles, args.rotary_dim);
    const int slot = args.slots[token];
    write_kv(args.kv, slot / args.kv.block_size, kv_head, slot % args.kv.block_size, key, key + kv_heads * dim,
             args.last[token] != 0);
  }
}

}  // namespace vllm::VLLM_ISA
