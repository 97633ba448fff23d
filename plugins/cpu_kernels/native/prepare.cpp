// fp32 rows into what the products read.
#include "bestiary_cpu.h"
#include "quantize.h"

using namespace bst;

BST_API int64_t bst_prepared_size(int quantized, int64_t rows, int64_t n_in) {
  return rows * (quantized ? n_in / kBlock * static_cast<int64_t>(sizeof(Record)) : n_in * 4);
}

BST_API void bst_prepare(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_prepare_args*>(args);
  const int64_t blocks = a.n_in / kBlock;
  const Range mine = share(a.rows * blocks, part, parts);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t row = i / blocks, block = i % blocks;
    const float* x = a.x + (a.rows_of ? a.rows_of[row] : row) * a.x_stride + block * kBlock;
    const Tile tile = tile_of(a.tiles, row, a.rows);
    if (tile.rows > 0) put_block(a.quantized, a.prepared, tile, a.n_in, row, block, x);
  }
  if (a.quantized || part != parts - 1) return;
  for (int64_t row = 0; row < a.rows; ++row) {  // columns beyond the last whole block
    const Tile tile = tile_of(a.tiles, row, a.rows);
    const float* x = a.x + (a.rows_of ? a.rows_of[row] : row) * a.x_stride;
    for (int64_t k = blocks * kBlock; k < a.n_in && tile.rows > 0; ++k)
      *float_at(a.prepared, tile, a.n_in, row, k) = x[k];
  }
}
