// Keys and values of every layer, in blocks. kernels/args.h draws a block.
#pragma once

#include <vector>

#include "kernels/args.h"
#include "runtime/memory.h"

namespace vllm {

struct KvShape {
  KvType type;
  int num_layers;
  int num_kv_heads;
  int head_dim;
  int num_blocks;
  int block_size;
};

class KvCache {
 public:
  // Throws std::invalid_argument for a shape that the layout cannot hold.
  explicit KvCache(const KvShape& shape);

  const KvShape& shape() const { return shape_; }
  const KvLayer& layer(int i) const { return layers_.at(static_cast<size_t>(i)); }
  size_t bytes() const { return memory_.size(); }

  // One block's keys and values of all layers, as plain bytes that a cache of the same shape can take back.
  size_t block_bytes() const;
  // Copies whole blocks, one after another, out of the cache or into it. Throws std::invalid_argument, with nothing
  // done, for a block that there is not.
  void read_blocks(const int32_t* blocks, size_t count, uint8_t* out) const;
  void write_blocks(const int32_t* blocks, size_t count, const uint8_t* in);

 private:
  void check_blocks(const int32_t* blocks, size_t count) const;

  KvShape shape_;
  Mapping memory_;
  std::vector<KvLayer> layers_;
};

}  // namespace vllm
