// RMS norm and layer norm, with the residual added before and the result prepared for products after.
//
// Parts divide rows and blocks of 32 columns. Whoever writes a part of a row looks at all of it first: a row is short
// beside what waiting for one another would cost.
#include <cmath>

#include "bestiary_cpu.h"
#include "quantize.h"

using namespace bst;

namespace {

struct Row {
  const float* x;
  const float* residual;

  Floats at(int64_t k) const { return residual ? load(x + k) + load(residual + k) : load(x + k); }
  float one(int64_t k) const { return residual ? x[k] + residual[k] : x[k]; }
};

// Σ (x - mean)² over a row, or Σ x. Column k belongs to lane k % 16; columns beyond the last sixteen come last.
float row_sum(const Row& row, int64_t n, bool squares, float mean) {
  Sixteen total = sixteen(0.0f);
  int64_t k = 0;
  for (; k + 16 <= n; k += 16)
    for (int i = 0; i < Sixteen::kParts; ++i) {
      const Floats x = row.at(k + i * kLanes) - set(mean);
      total.part[i] = squares ? fma(x, x, total.part[i]) : total.part[i] + x;
    }
  float found = sum(total);
  for (; k < n; ++k) {
    const float x = row.one(k) - mean;
    found += squares ? x * x : x;
  }
  return found;
}

const float* row_at(const bst_norm_args& a, int64_t index) {
  return a.group > 0 ? a.x + index / a.group * a.x_group_stride + index % a.group * a.x_stride : a.x + index * a.x_stride;
}

struct Statistics {
  float mean, factor;
};

Statistics statistics(const bst_norm_args& a, const Row& row) {
  const auto n = static_cast<float>(a.n);
  const float mean = a.center ? row_sum(row, a.n, false, 0.0f) / n : 0.0f;
  return {mean, 1.0f / std::sqrt(row_sum(row, a.n, true, mean) / n + a.eps)};
}

// Columns first … first + count - 1 of one row.
void normalise(const bst_norm_args& a, int64_t index, const Row& row, Statistics s, int64_t first, int count) {
  alignas(64) float y[kBlock];
  int i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    const int64_t k = first + i;
    const Floats x = row.at(k);
    if (a.sum) store(a.sum + index * a.sum_stride + k, x);
    Floats scaled = (x - set(s.mean)) * set(s.factor);
    if (a.weight) scaled = scaled * (load(a.weight + k) + set(a.weight_offset));
    if (a.bias) scaled = scaled + load(a.bias + k);
    store(y + i, scaled);
  }
  for (; i < count; ++i) {
    const int64_t k = first + i;
    const float x = row.one(k);
    if (a.sum) a.sum[index * a.sum_stride + k] = x;
    y[i] = (x - s.mean) * s.factor;
    if (a.weight) y[i] *= a.weight[k] + a.weight_offset;
    if (a.bias) y[i] += a.bias[k];
  }
  if (a.out) std::memcpy(a.out + index * a.out_stride + first, y, sizeof(float) * static_cast<size_t>(count));
  if (a.prepared) put_block(a.quantized, a.prepared, tile_at(index / kTile, a.rows), a.n, index, first / kBlock, y);
}

}  // namespace

BST_API void bst_norm(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_norm_args*>(args);
  const int64_t blocks = (a.n + kBlock - 1) / kBlock;
  const Range mine = share(a.rows * blocks, part, parts);
  int64_t known = -1;
  Statistics s = {0, 0};
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t index = i / blocks, first = i % blocks * kBlock, left = a.n - first;
    const Row row = {row_at(a, index), a.residual ? a.residual + index * a.residual_stride : nullptr};
    if (index != known) s = statistics(a, row), known = index;
    normalise(a, index, row, s, first, static_cast<int>(left < kBlock ? left : kBlock));
  }
}
