// Prepared activations: what `bst_prepare` makes of fp32 rows once, for all the products that read them.
//
// Rows lie in tiles of eight, so that a kernel walks a tile in one stream; the last tile has the rows that are left.
//
//   quantized    tile t: [block][row of the tile] Records; a block is 32 elements
//   floats       tile t: [element][row of the tile] fp32 (one row: the row itself)
#pragma once
#include <cstdint>

namespace bst {

constexpr int kTile = 8;
constexpr int kBlock = 32;

// One block of one row: x[i] is about q[i] * scale.
struct Record {
  int8_t q[kBlock];      // -127 … 127
  float scale;           // NaN where the block holds NaN or infinity
  float scaled_sum;      // scale * sum(q): what a format's minimum is multiplied by
  int32_t minus_sum;     // -sum(q): what a format's zero point is multiplied by
  int32_t minus_sum_low; // -sum(q[0…15])
};
static_assert(sizeof(Record) == 48, "kernels step by 48 bytes");

struct Tile {
  int64_t first;  // row
  int rows;
};

static inline Tile tile_at(int64_t index, int64_t rows) {
  const int64_t first = index * kTile, left = rows - first;
  return {first, static_cast<int>(left < kTile ? left : kTile)};
}

static inline int64_t tiles_of(int64_t rows) { return (rows + kTile - 1) / kTile; }

// Part `part` of `parts` of `count` things.
struct Range {
  int64_t begin, end;
};
static inline Range share(int64_t count, int part, int parts) {
  return {count * part / parts, count * (part + 1) / parts};
}

}  // namespace bst
