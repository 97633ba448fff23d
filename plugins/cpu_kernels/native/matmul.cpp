// Products: which kernel meets which rows, in an order that keeps what is read again in the nearer caches.
#include "bestiary_cpu.h"
#include "matmul.h"
#include "output.h"
#include "weights.h"

using namespace bst;

namespace {

constexpr int64_t kGroup = 4;              // panels that a tile of rows meets in turn
constexpr int64_t kAhead = 256 * kLanes;   // bytes that a panel's stream is fetched in advance, where it ends with it
constexpr int64_t kMostAhead = 256 << 10;  // how far off the panels that come next are fetched while these are read
constexpr int64_t kNearBytes = 512 << 10;  // of activations that are read again for every group: half of an L2 cache

// Rows between two walks over the weights: whole tiles.
int64_t rows_at_once(int64_t row_bytes) {
  const int64_t fit = kNearBytes / row_bytes / kTile * kTile;
  return fit < kTile ? kTile : fit;
}

// `end`: of the panels that come after these.
void tile_product(const Quantized& q, const bst_matmul_args& a, Range panels, int64_t end, Tile tile) {
  alignas(64) float acc[kPanels * kTile * kLanes];
  const Record* x = static_cast<const Record*>(a.prepared) + tile.first * (a.n_in / kBlock);
  const auto* weight = static_cast<const uint8_t*>(a.weight);
  const int64_t size = q.panel_bytes(a.n_in), most = panels_at_once(tile.rows);
  for (int64_t p = panels.begin; p < panels.end; p += most) {
    const int count = static_cast<int>(panels.end - p < most ? panels.end - p : most);
    const int64_t ahead = p + most < end && most * size <= kMostAhead ? most * size : kAhead;
    q.product[tile.rows - 1][count - 1](weight + p * size, a.n_in, ahead, x, tile.rows, acc);
    for (int i = 0; i < count; ++i)
      for (int r = 0; r < tile.rows; ++r) write_out(a, tile.first + r, p + i, acc + (i * tile.rows + r) * kLanes);
  }
}

// All tiles that fit a near cache meet a few panels while these are there too; a tile's rows of the result are then
// written some lines at a time.
void quantized_product(const Quantized& q, const bst_matmul_args& a, Range panels) {
  const int64_t step = rows_at_once(a.n_in / kBlock * static_cast<int64_t>(sizeof(Record))) / kTile;
  const int64_t tiles = tiles_of(a.rows);
  for (int64_t first = 0; first < tiles; first += step)
    for (int64_t begin = panels.begin; begin < panels.end; begin += kGroup)
      for (int64_t t = first; t < tiles && t < first + step; ++t)
        tile_product(q, a, {begin, begin + kGroup < panels.end ? begin + kGroup : panels.end}, panels.end,
                     tile_at(t, a.rows));
}

}  // namespace

BST_API int bst_takes_quantized(int format) { return quantized_format(format) != nullptr; }

void bst::product(const bst_matmul_args& a, Range panels) {
  if (a.rows <= 0) return;
  const Quantized* q = quantized_format(a.format);
  if (!q) float_product(a, panels);
  else quantized_product(*q, a, panels);
}

BST_API void bst_matmul(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_matmul_args*>(args);
  product(a, share(panels_of(a.n_out), part, parts));
}
