// Products: which kernel meets which rows, in an order that keeps what is read again in the nearer caches.
#include "bestiary_cpu.h"
#include "float_matmul.h"
#include "output.h"
#include "weights.h"

using namespace bst;

namespace {

constexpr int64_t kMostRows = 512;
constexpr int64_t kNearBytes = 512 << 10;  // of activations that are read again for every panel: half of an L2 cache

// Rows between two walks over the weights: whole tiles.
int64_t rows_at_once(int64_t row_bytes) {
  const int64_t fit = kNearBytes / row_bytes / kTile * kTile;
  return fit < kTile ? kTile : fit > kMostRows ? kMostRows : fit;
}

void one_panel_direct(const Quantized& q, const bst_matmul_args& a, const uint8_t* panel, int64_t p) {
  float acc[kDirectRows * kLanes];
  q.direct[a.rows - 1](panel, a.n_in, static_cast<const Record*>(a.prepared), a.rows, acc);
  for (int64_t r = 0; r < a.rows; ++r) write_out(a, r, p, acc + r * kLanes);
}

void one_panel_decoded(const Quantized& q, const bst_matmul_args& a, const uint8_t* panel, int64_t p, Range tiles) {
  alignas(64) Decoded chunk[kChunkBlocks];
  alignas(64) float acc[kMostRows * kLanes];
  const int64_t blocks = a.n_in / kBlock;
  std::memset(acc, 0, sizeof(float) * static_cast<size_t>((tiles.end - tiles.begin) * kTile * kLanes));
  for (int64_t first = 0; first < blocks; first += kChunkBlocks) {
    const int count = static_cast<int>(blocks - first < kChunkBlocks ? blocks - first : kChunkBlocks);
    q.decode(panel, a.n_in, first, count, chunk);
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const Tile tile = tile_at(t, a.rows);
      const Record* x = static_cast<const Record*>(a.prepared) + tile.first * blocks + first * tile.rows;
      q.decoded[tile.rows - 1](chunk, count, x, tile.rows, acc + (t - tiles.begin) * kTile * kLanes);
    }
  }
  for (int64_t t = tiles.begin; t < tiles.end; ++t) {
    const Tile tile = tile_at(t, a.rows);
    for (int r = 0; r < tile.rows; ++r) write_out(a, tile.first + r, p, acc + ((t - tiles.begin) * kTile + r) * kLanes);
  }
}

void quantized_product(const Quantized& q, const bst_matmul_args& a, Range panels) {
  const int64_t size = q.panel_bytes(a.n_in);
  const auto* weight = static_cast<const uint8_t*>(a.weight);
  if (a.rows <= kDirectRows) {
    for (int64_t p = panels.begin; p < panels.end; ++p) one_panel_direct(q, a, weight + p * size, p);
    return;
  }
  const int64_t step = rows_at_once(a.n_in / kBlock * static_cast<int64_t>(sizeof(Record))) / kTile;
  const int64_t tiles = tiles_of(a.rows);
  for (int64_t t = 0; t < tiles; t += step) {
    const Range some = {t, t + step < tiles ? t + step : tiles};
    for (int64_t p = panels.begin; p < panels.end; ++p) one_panel_decoded(q, a, weight + p * size, p, some);
  }
}

}  // namespace

BST_API int bst_takes_quantized(int format) { return quantized_format(format) != nullptr; }

BST_API void bst_matmul(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_matmul_args*>(args);
  if (a.rows <= 0) return;
  const Range panels = share((a.n_out + kLanes - 1) / kLanes, part, parts);
  if (const Quantized* q = quantized_format(a.format)) quantized_product(*q, a, panels);
  else float_product(a, panels);
}
