// Rows of an embedding table out of the packed layouts of linear layers, so that a tied table is stored once.
#pragma once

#include "kernels/args.h"
#include "simd/vec.h"

namespace vllm::VLLM_ISA {

VLLM_INLINE float float_of_bf16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

VLLM_INLINE float group_value(const PackedMatrix& table, const uint8_t* tile, int column, int k, int groups) {
  const bool four_bits = table.format != Format::kInt8Group, minima = table.format == Format::kQ4Min;
  const auto* scales = reinterpret_cast<const uint16_t*>(tile);
  const ptrdiff_t plane = static_cast<ptrdiff_t>(groups) * kTile;
  const ptrdiff_t entry = static_cast<ptrdiff_t>(k / kGroup) * kTile + column;
  const auto* data = reinterpret_cast<const uint8_t*>(scales + (minima ? 2 * plane : plane));
  float half[kLanes];
  uint16_t raw[kLanes] = {scales[entry], minima ? scales[plane + entry] : uint16_t{0}};
  store(half, load_f16(raw));
  if (!four_bits) return static_cast<float>(data[(k / 4 * kTile + column) * 4 + k % 4] - 128) * half[0];
  const uint8_t two = data[(k / 8 * kTile + column) * 4 + k % 4];
  const int nibble = k % 8 < 4 ? two & 15 : two >> 4;
  return static_cast<float>(minima ? nibble : nibble - 8) * half[0] + half[1];
}

VLLM_INLINE float table_value(const PackedMatrix& table, const uint8_t* tile, int column, int k, int groups) {
  switch (table.format) {
    case Format::kF32:
      return reinterpret_cast<const float*>(tile)[k * kTile + column];
    case Format::kBf16:
      return float_of_bf16(reinterpret_cast<const uint16_t*>(tile)[(k / 2 * kTile + column) * 2 + k % 2]);
    case Format::kInt8: {
      const uint8_t value = tile[kTile * sizeof(float) + static_cast<size_t>((k / 4 * kTile + column) * 4 + k % 4)];
      return static_cast<float>(value - 128) * reinterpret_cast<const float*>(tile)[column];
    }
    default:
      return group_value(table, tile, column, k, groups);
  }
}

void embed(EmbedArgs& args, int begin, int end) {
  const int groups = ceil_div(args.table.num_in, kGroup);
  for (int t = begin; t < end; ++t) {
    const int id = args.token_ids[t];
    const uint8_t* tile = args.table.data + static_cast<size_t>(id / kTile) * args.table.tile_bytes;
    float* y = args.y + t * args.y_stride;
    for (int k = 0; k < args.table.num_in; ++k) y[k] = table_value(args.table, tile, id % kTile, k, groups) * args.scale;
  }
}

}  // namespace vllm::VLLM_ISA
