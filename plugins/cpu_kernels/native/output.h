// The end of every product: bias and residual are added, and lanes beyond the last output dropped.
#pragma once
#include "bestiary_cpu.h"
#include "vec.h"

namespace bst {

static inline void write_out(const bst_matmul_args& a, int64_t row, int64_t panel, const float* acc) {
  const int64_t first = panel * kLanes, left = a.n_out - first;
  float* out = a.out + row * a.out_stride + first;
  const float* bias = a.bias ? a.bias + first : nullptr;
  const float* add = a.add ? a.add + row * a.add_stride + first : nullptr;
  if (left >= kLanes) {
    Floats x = load(acc);
    if (bias) x = x + load(bias);
    if (add) x = x + load(add);
    store(out, x);
    return;
  }
  for (int64_t i = 0; i < left; ++i) {
    float x = acc[i];
    if (bias) x += bias[i];
    if (add) x += add[i];
    out[i] = x;
  }
}

}  // namespace bst
