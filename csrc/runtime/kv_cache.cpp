#include "runtime/kv_cache.h"

#include <climits>
#include <cstring>
#include <string>

#include "runtime/spec.h"

namespace vllm {
namespace {

constexpr int kMaxLayers = 1 << 16;

// One head of one block; sizes count 32 bits. kernels/args.h draws it.
struct HeadLayout {
  size_t keys;
  size_t values;
  size_t scales;

  size_t stride() const { return align_up(keys + values + scales, kLanes); }
};

HeadLayout head_layout(const KvShape& shape) {
  const size_t positions = align_up(static_cast<size_t>(shape.block_size), kLanes);
  const size_t per_unit = shape.type == KvType::kF32 ? 1 : shape.type == KvType::kBf16 ? 2 : 4;
  return {positions * static_cast<size_t>(shape.head_dim) / per_unit,
          positions * static_cast<size_t>(round_up(shape.head_dim, kLanes)) / per_unit,
          shape.type == KvType::kInt8 ? 2 * positions : 0};
}

}  // namespace

KvCache::KvCache(const KvShape& shape) : shape_(shape) {
  const auto fits = [](int extent) { return extent >= 1 && extent <= kMaxExtent; };
  if (shape.num_layers < 0 || shape.num_layers > kMaxLayers || !fits(shape.num_kv_heads) || !fits(shape.head_dim) ||
      !fits(shape.num_blocks) || !fits(shape.block_size))
    throw Malformed("the KV cache needs positive numbers of heads, dimensions, blocks and positions, each at most " +
                    std::to_string(kMaxExtent) + ", and at most " + std::to_string(kMaxLayers) + " layers");
  if (shape.type == KvType::kBf16 && shape.head_dim % 2)
    throw std::invalid_argument("head_dim " + std::to_string(shape.head_dim) +
                                " is odd; a bfloat16 KV cache needs an even one");
  const auto is_int = [](int a, int b) { return int64_t{a} * b <= INT_MAX; };
  if (!is_int(shape.num_blocks, shape.block_size) ||
      !is_int(round_up(shape.block_size, kLanes), round_up(shape.head_dim, kLanes)))
    throw Malformed("the KV cache has more slots, or more numbers in a block's head, than can be counted");
  const HeadLayout head = head_layout(shape);
  const auto heads = static_cast<size_t>(shape.num_kv_heads), blocks = static_cast<size_t>(shape.num_blocks);
  const auto num_layers = static_cast<size_t>(shape.num_layers);
  memory_ = Mapping::zeroed(saturating_product({head.stride(), heads, blocks, num_layers, sizeof(uint32_t)}));
  const size_t block_stride = head.stride() * heads, layer_stride = block_stride * blocks;
  auto* units = reinterpret_cast<uint32_t*>(memory_.data());
  for (size_t i = 0; i < num_layers; ++i)
    layers_.push_back({.type = shape.type,
                       .data = units + i * layer_stride,
                       .block_stride = block_stride,
                       .head_stride = head.stride(),
                       .values_offset = head.keys,
                       .scales_offset = head.keys + head.values,
                       .block_size = shape.block_size,
                       .num_kv_heads = shape.num_kv_heads,
                       .head_dim = shape.head_dim});
}

size_t KvCache::block_bytes() const {
  return layers_.empty() ? 0 : layers_.size() * layers_.front().block_stride * sizeof(uint32_t);
}

void KvCache::read_blocks(const int32_t* blocks, size_t count, uint8_t* out) const {
  check_blocks(blocks, count);
  for (size_t i = 0; i < count; ++i)
    for (const KvLayer& layer : layers_) {
      const size_t bytes = layer.block_stride * sizeof(uint32_t);
      std::memcpy(out, layer.keys(blocks[i], 0), bytes);
      out += bytes;
    }
}

void KvCache::write_blocks(const int32_t* blocks, size_t count, const uint8_t* in) {
  check_blocks(blocks, count);
  for (size_t i = 0; i < count; ++i)
    for (const KvLayer& layer : layers_) {
      const size_t bytes = layer.block_stride * sizeof(uint32_t);
      std::memcpy(layer.keys(blocks[i], 0), in, bytes);
      in += bytes;
    }
}

void KvCache::check_blocks(const int32_t* blocks, size_t count) const {
  for (size_t i = 0; i < count; ++i)
    if (blocks[i] < 0 || blocks[i] >= shape_.num_blocks)
      throw std::invalid_argument("KV block " + std::to_string(blocks[i]) + " is out of range: there are " +
                                  std::to_string(shape_.num_blocks));
}

}  // namespace vllm
