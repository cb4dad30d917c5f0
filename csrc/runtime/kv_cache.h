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

 private:
  KvShape shape_;
  Mapping memory_;
  std::vector<KvLayer> layers_;
};

}  // namespace vllm
