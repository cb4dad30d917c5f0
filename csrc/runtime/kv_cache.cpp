#include "runtime/kv_cache.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace vllm {
namespace {

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
  if (shape.num_layers < 0 || shape.num_kv_heads < 1 || shape.head_dim < 1 || shape.num_blocks < 1 ||
      shape.block_size < 1)
    throw std::invalid_argument("the KV cache needs positive numbers of heads, dimensions, blocks and positions");
  if (shape.type == KvType::kBf16 && shape.head_dim % 2)
    throw std::invalid_argument("head_dim " + std::to_string(shape.head_dim) +
                                " is odd; a bfloat16 KV cache needs an even one");
  const HeadLayout head = head_layout(shape);
  const size_t block_stride = head.stride() * static_cast<size_t>(shape.num_kv_heads);
  const size_t layer_stride = block_stride * static_cast<size_t>(shape.num_blocks);
  memory_ = Mapping::zeroed(layer_stride * static_cast<size_t>(shape.num_layers) * sizeof(uint32_t));
  auto* units = reinterpret_cast<uint32_t*>(memory_.data());
  for (int i = 0; i < shape.num_layers; ++i)
    layers_.push_back({shape.type, units + static_cast<size_t>(i) * layer_stride, block_stride, head.stride(),
                       head.keys, head.keys + head.values, shape.block_size, shape.num_kv_heads, shape.head_dim});
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
