// Products with weights that are plain numbers. (Layout and order of additions: floats.h.)
#include "matmul.h"

#include "floats.h"
#include "output.h"
#include "weights.h"

namespace bst {
namespace {

// Registers decide how many rows and panels meet at once: 32 of AVX-512 hold 8 × 2 sums, 16 of AVX2 hold 4 × 3. Few rows
// take four panels: memory is read faster in several streams, and additions do not wait for one another.
constexpr int kRows = kLanes == 16 ? 8 : 4, kFewRows = kRows / 2;
constexpr int kMostPanels = 4;
constexpr int panels_at_once(int rows) { return rows <= kFewRows ? 4 : kLanes == 16 ? 2 : 3; }
constexpr int64_t kMostRows = 256;
constexpr int64_t kNearBytes = 1 << 20;

// total[r][p] += the run's sum; total is fp32 [row][kMostPanels][kLanes], x [column][step].
template <class F, int rows, int panels>
void run(const typename F::T* w, int64_t panel, const float* x, int64_t step, int count, float* total) {
  Floats sum[rows][panels];
  for (auto& row : sum)
    for (auto& each : row) each = set(0.0f);
  for (int k = 0; k < count; ++k, x += step) {
    Floats weight[panels];
#pragma GCC unroll 4
    for (int p = 0; p < panels; ++p) weight[p] = F::get(w + p * panel + k * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Floats value = set(x[r]);
#pragma GCC unroll 4
      for (int p = 0; p < panels; ++p) sum[r][p] = fma(weight[p], value, sum[r][p]);
    }
  }
  for (int r = 0; r < rows; ++r)
    for (int p = 0; p < panels; ++p) {
      float* to = total + (r * kMostPanels + p) * kLanes;
      store(to, load(to) + sum[r][p]);
    }
}

template <class F>
using Run = void (*)(const typename F::T*, int64_t, const float*, int64_t, int, float*);

template <class F, int rows>
constexpr Run<F> pick(int panels) {
  constexpr int most = panels_at_once(rows);
  if constexpr (most >= 4) if (panels == 4) return run<F, rows, 4>;
  if constexpr (most >= 3) if (panels == 3) return run<F, rows, 3>;
  return panels == 2 ? run<F, rows, 2> : run<F, rows, 1>;
}

template <class F>
Run<F> kernel(int rows, int panels) {
  switch (rows) {
    case 1: return pick<F, 1>(panels);
    case 2: return pick<F, 2>(panels);
    case 3: return pick<F, 3>(panels);
    case 4: return pick<F, 4>(panels);
  }
  if constexpr (kRows == 8) {
    switch (rows) {
      case 5: return pick<F, 5>(panels);
      case 6: return pick<F, 6>(panels);
      case 7: return pick<F, 7>(panels);
      case 8: return pick<F, 8>(panels);
    }
  }
  return nullptr;
}

struct Group {  // neighbouring panels, computed together
  int64_t first;
  int count;
};

template <class F>
void tile_run(const typename F::T* w, int64_t panel, const float* x, Tile tile, int count, int panels, float* total) {
  for (int r = 0; r < tile.rows; r += kRows) {
    const int rows = tile.rows - r < kRows ? tile.rows - r : kRows;
    kernel<F>(rows, panels)(w, panel, x + r, tile.rows, count, total + r * kMostPanels * kLanes);
  }
}

// Some tiles of rows with one group of panels. Weights that many rows meet are widened to fp32 once, run by run.
template <class F>
void group_product(const bst_matmul_args& a, Group group, Range tiles) {
  alignas(64) float total[kMostRows * kMostPanels * kLanes];
  alignas(64) float wide[kMostPanels * kRun * kLanes];
  const int64_t panel = float_panel_bytes(sizeof(typename F::T), a.n_in) / static_cast<int64_t>(sizeof(typename F::T));
  const auto* weight = static_cast<const typename F::T*>(a.weight) + group.first * panel;
  const bool widen = sizeof(typename F::T) == 2 && a.rows > kRows;
  std::memset(total, 0, sizeof(float) * static_cast<size_t>((tiles.end - tiles.begin) * kTile * kMostPanels * kLanes));
  for (int64_t first = 0; first < a.n_in; first += kRun) {
    const int count = static_cast<int>(a.n_in - first < kRun ? a.n_in - first : kRun);
    const auto* w = weight + first * kLanes;
    if (widen)
      for (int p = 0; p < group.count; ++p)
        for (int k = 0; k < count; ++k) store(wide + (p * kRun + k) * kLanes, F::get(w + p * panel + k * kLanes));
    for (int64_t t = tiles.begin; t < tiles.end; ++t) {
      const Tile tile = tile_at(t, a.rows);
      const float* x = static_cast<const float*>(a.prepared) + tile.first * a.n_in + first * tile.rows;
      float* to = total + (t - tiles.begin) * kTile * kMostPanels * kLanes;
      if (widen) tile_run<F32>(wide, kRun * kLanes, x, tile, count, group.count, to);
      else tile_run<F>(w, panel, x, tile, count, group.count, to);
    }
  }
  for (int64_t row = tiles.begin * kTile; row < tiles.end * kTile && row < a.rows; ++row)
    for (int p = 0; p < group.count; ++p)
      write_out(a, row, group.first + p, total + ((row - tiles.begin * kTile) * kMostPanels + p) * kLanes);
}

template <class F>
void product(const bst_matmul_args& a, Range panels) {
  const int64_t fit = kNearBytes / (a.n_in * 4) / kTile * kTile;
  const int64_t rows = fit < kTile ? kTile : fit > kMostRows ? kMostRows : fit;
  const int64_t tiles = tiles_of(a.rows), step = rows / kTile;
  const int most = panels_at_once(a.rows > kRows ? kRows : static_cast<int>(a.rows));
  for (int64_t t = 0; t < tiles; t += step) {
    for (int64_t p = panels.begin; p < panels.end; p += most) {
      const int count = static_cast<int>(panels.end - p < most ? panels.end - p : most);
      group_product<F>(a, {p, count}, {t, t + step < tiles ? t + step : tiles});
    }
  }
}

}  // namespace

void float_product(const bst_matmul_args& a, Range panels) {
  switch (a.format) {
    case kF32: return product<F32>(a, panels);
    case kF16: return product<F16>(a, panels);
    case kBF16: return product<BF16>(a, panels);
    default: return;
  }
}

}  // namespace bst
