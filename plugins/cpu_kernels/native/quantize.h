// Activations to int8: one block of 32, the rule that everything which prepares activations follows.
//
// scale = max|x| / 127; q = x * (127 / max|x|), to nearest, ties to even. Blocks of (almost) nothing become zeros.
// A block with NaN or infinity gets the scale NaN, so that what is computed from it is NaN.
#pragma once
#include <limits>

#include "records.h"
#include "vec.h"

namespace bst {

static inline void quantize_block(const float* x, Record* to) {
  constexpr int kParts = kBlock / kLanes;
  const Ints magnitude = set(int32_t{0x7FFFFFFF});
  Ints top = set(int32_t{0});
  for (int i = 0; i < kParts; ++i) top = max(top, bits(load(x + i * kLanes)) & magnitude);
  const int32_t most = largest(top);  // magnitudes are in the order of their bits, with infinity and NaN at the end
  float size;
  std::memcpy(&size, &most, 4);
  const bool finite = most < 0x7F800000, some = finite && size > 1e-30f;
  const Floats factor = set(some ? 127.0f / size : 0.0f);
  Ints half[2] = {set(int32_t{0}), set(int32_t{0})};
  for (int i = 0; i < kParts; ++i) {
    const Ints q = some ? round(load(x + i * kLanes) * factor) : set(int32_t{0});
    half[i * kLanes / 16] = half[i * kLanes / 16] + q;
    to_int8(to->q + i * kLanes, q);
  }
  const int32_t low = sum(half[0]), all = low + sum(half[1]);
  to->scale = finite ? (some ? size / 127.0f : 0.0f) : std::numeric_limits<float>::quiet_NaN();
  to->scaled_sum = to->scale * static_cast<float>(all);
  to->minus_sum = -all;
  to->minus_sum_low = -low;
}

// The tile that row `row` of `rows` lies in: `tiles`, where given, says so for each row (bestiary_cpu.h: bst_route).
static inline Tile tile_of(const int32_t* tiles, int64_t row, int64_t rows) {
  return tiles ? Tile{tiles[2 * row], tiles[2 * row + 1]} : tile_at(row / kTile, rows);
}

static inline float* float_at(void* prepared, Tile tile, int64_t columns, int64_t row, int64_t column) {
  return static_cast<float*>(prepared) + tile.first * columns + column * tile.rows + (row - tile.first);
}

// 32 values of one row of a tile into their place among the prepared rows.
static inline void put_block(bool quantized, void* prepared, Tile tile, int64_t n_in, int64_t row, int64_t block,
                             const float* x) {
  if (quantized) {
    const int64_t at = tile.first * (n_in / kBlock) + block * tile.rows + (row - tile.first);
    quantize_block(x, static_cast<Record*>(prepared) + at);
    return;
  }
  float* to = float_at(prepared, tile, n_in, row, block * kBlock);
  for (int i = 0; i < kBlock; ++i) to[i * tile.rows] = x[i];
}

}  // namespace bst
