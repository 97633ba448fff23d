// Products of many experts at once: who computes which rows, and what they add up to.
#include "bestiary_cpu.h"
#include "matmul.h"
#include "vec.h"

using namespace bst;

namespace {

// Where experts' rows begin: counted, summed, and moved on while rows are given out, so that each entry ends as the next
// one's beginning.
void give_rows(const bst_route_args& a) {
  const int64_t pairs = a.tokens * a.k;
  const auto here = [&](int64_t slot) { return slot >= 0 && slot < a.experts; };
  std::memset(a.offsets, 0, sizeof(int32_t) * static_cast<size_t>(a.experts + 1));
  for (int64_t i = 0; i < pairs; ++i)
    if (here(a.slots[i])) ++a.offsets[a.slots[i] + 1];
  for (int64_t e = 0; e < a.experts; ++e) a.offsets[e + 1] += a.offsets[e];
  int32_t last = a.offsets[a.experts];
  for (int64_t i = 0; i < pairs; ++i) {
    const bool computed = here(a.slots[i]);
    const int32_t row = computed ? a.offsets[a.slots[i]]++ : last++;
    a.places[i] = computed ? row : -1;
    a.rows_of[row] = static_cast<int32_t>(i / a.k);
  }
  for (int64_t e = a.experts; e > 0; --e) a.offsets[e] = a.offsets[e - 1];
  a.offsets[0] = 0;
}

void give_tiles(const bst_route_args& a) {
  std::memset(a.tiles, 0, sizeof(int32_t) * 2 * static_cast<size_t>(a.tokens * a.k));
  for (int64_t e = 0; e < a.experts; ++e) {
    const int32_t begin = a.offsets[e], rows = a.offsets[e + 1] - begin;
    for (int32_t row = 0; row < rows; ++row) {
      const Tile tile = tile_at(row / kTile, rows);
      a.tiles[2 * (begin + row)] = begin + static_cast<int32_t>(tile.first);
      a.tiles[2 * (begin + row) + 1] = tile.rows;
    }
  }
}

// What one panel costs, in arbitrary units: its weights are read once, then multiplied by every row.
int64_t panel_cost(int64_t rows) { return rows > 0 ? 2 + rows : 0; }

int64_t divide_up(int64_t n, int64_t by) { return n <= 0 ? 0 : (n + by - 1) / by; }

constexpr int64_t kColumns = 64;  // of a token's sum that one part adds up

}  // namespace

BST_API void bst_route(const void* args, int part, int) {
  if (part != 0) return;
  const auto& a = *static_cast<const bst_route_args*>(args);
  give_rows(a);
  give_tiles(a);
}

// All panels of all experts lie on one line, each as long as it costs; a part has those that begin in its piece.
BST_API void bst_expert_matmul(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_expert_matmul_args*>(args);
  const int64_t panels = panels_of(a.n_out), row_bytes = bst_prepared_size(bst_takes_quantized(a.format), 1, a.n_in);
  int64_t length = 0, at = 0;
  for (int64_t e = 0; e < a.experts; ++e) length += panels * panel_cost(a.offsets[e + 1] - a.offsets[e]);
  const Range mine = share(length, part, parts);
  for (int64_t e = 0; e < a.experts; ++e) {
    const int64_t first = a.offsets[e], rows = a.offsets[e + 1] - first, cost = panel_cost(rows);
    if (cost == 0) continue;
    const int64_t begin = divide_up(mine.begin - at, cost), end = divide_up(mine.end - at, cost);
    at += panels * cost;
    if (begin >= panels || end <= begin) continue;
    const bst_matmul_args one = {a.format, static_cast<const char*>(a.weight) + e * a.weight_bytes,
                                 static_cast<const char*>(a.prepared) + first * row_bytes, rows, a.n_out, a.n_in,
                                 a.out + first * a.out_stride, a.out_stride, nullptr, nullptr, 0};
    product(one, {begin, end < panels ? end : panels});
  }
}

// Rows ascend with their experts, so that a token's pairs are taken by the next row that is larger than the last.
BST_API void bst_expert_combine(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_expert_combine_args*>(args);
  const int64_t chunks = divide_up(a.n, kColumns);
  const Range mine = share(a.tokens * chunks, part, parts);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t token = i / chunks, first = i % chunks * kColumns, left = a.n - first;
    const int64_t count = left < kColumns ? left : kColumns;
    const int32_t* places = a.places + token * a.k;
    float sum[kColumns] = {};
    for (int32_t last = -1;;) {
      int64_t next = -1;
      for (int64_t j = 0; j < a.k; ++j)
        if (places[j] > last && (next < 0 || places[j] < places[next])) next = j;
      if (next < 0) break;
      last = places[next];
      const float weight = a.weights[token * a.k + next];
      const float* x = a.x + last * a.x_stride + first;
      for (int64_t c = 0; c < count; ++c) sum[c] += x[c] * weight;
    }
    const float* add = a.add ? a.add + token * a.add_stride + first : nullptr;
    float* out = a.out + token * a.out_stride + first;
    for (int64_t c = 0; c < count; ++c) out[c] = add ? sum[c] + add[c] : sum[c];
  }
}
