// Rows of an embedding table out of the packed layouts of linear layers, so that a tied table is stored once.
#pragma once

#include "kernels/args.h"
#include "kernels/linear/f8_weights.h"
#include "kernels/linear/int_weights.h"
#include "simd/vec.h"

namespace vllm::VLLM_ISA {

VLLM_INLINE float float_of_bf16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

VLLM_INLINE float lane(f32x16 vector, int i) {
  float values[kLanes];
  store(values, vector);
  return values[i];
}

template <class Scales>
VLLM_INLINE float nibble_value(const uint8_t* tile, int column, int k, int groups) {
  const uint8_t two = tile[Scales::header(groups) + (k / 8 * kTile + column) * 4 + k % 4];
  const int nibble = k % 8 < 4 ? two & 15 : two >> 4, n = column / kLanes, i = column % kLanes;
  const float scale = lane(Scales::scale(tile, groups, k / kGroup, n), i);
  if constexpr (Scales::kMinima)
    return static_cast<float>(nibble) * scale + lane(Scales::minimum(tile, groups, k / kGroup, n), i);
  else
    return static_cast<float>(nibble - 8) * scale;
}

VLLM_INLINE float byte_value(const uint8_t* codes, int column, int k) {
  return static_cast<float>(codes[(k / 4 * kTile + column) * 4 + k % 4] - 128);
}

template <class Scales>
VLLM_INLINE float f8_value(const uint8_t* tile, int column, int k, int num_in) {
  const uint8_t* codes = tile + Scales::header(num_in) + static_cast<ptrdiff_t>(k) * kTile;
  const auto* scales = reinterpret_cast<const float*>(tile) + (Scales::kByBlock ? k / kF8Group * kTile : 0);
  return lane(load_f8(codes + column / kLanes * kLanes), column % kLanes) * F8Lanes::kFactor * scales[column];
}

VLLM_INLINE float table_value(const PackedMatrix& table, const uint8_t* tile, int column, int k, int groups) {
  switch (table.format) {
    case Format::kF32:
      return reinterpret_cast<const float*>(tile)[k * kTile + column];
    case Format::kBf16:
      return float_of_bf16(reinterpret_cast<const uint16_t*>(tile)[(k / 2 * kTile + column) * 2 + k % 2]);
    case Format::kInt8:
      return byte_value(tile + OutputScales::header(groups), column, k) * reinterpret_cast<const float*>(tile)[column];
    case Format::kInt8Group:
      return byte_value(tile + GroupScales::header(groups), column, k) *
             lane(GroupScales::scale(tile, groups, k / kGroup, column / kLanes), column % kLanes);
    case Format::kQ4:
      return nibble_value<GroupScales>(tile, column, k, groups);
    case Format::kQ4Min:
      return nibble_value<GroupMinima>(tile, column, k, groups);
    case Format::kQ4K:
      return nibble_value<SuperMinima>(tile, column, k, groups);
    case Format::kF8:
      return f8_value<F8OutputScales>(tile, column, k, table.num_in);
    case Format::kF8Block:
      return f8_value<F8BlockScales>(tile, column, k, table.num_in);
  }
  return 0.0f;
}

void embed(EmbedArgs& args, int begin, int end) {
  const int groups = ceil_div(args.table.num_in, kGroup);
  for (int t = begin; t < end; ++t) {
    const int id = args.token_ids[t];
    const uint8_t* tile = args.table.data + static_cast<size_t>(id / kTile) * args.table.tile_bytes;
    float* y = args.y + t * args.y_stride;
    for (int k = 0; k < args.table.num_in; ++k)
      y[k] = table_value(args.table, tile, id % kTile, k, groups) * args.scale;
  }
}

}  // namespace vllm::VLLM_ISA
