// The vector types of the instruction set that this shared object is compiled for.
//
// All sets offer the same names (`Floats`, `Ints`, `Bytes`, `dots`, …) with the same results, bit for bit: integer
// sums are exact, every multiplication that is added to something is one `fma`, and what is summed across lanes is
// summed by `Sixteen`, whose lanes do not depend on a register's width.
#pragma once

#if defined(BST_AVX512)
#include "isa_avx512.h"
#elif defined(BST_AVX2)
#include "isa_avx2.h"
#else
#include "isa_scalar.h"
#endif

namespace bst {

static inline int64_t panels_of(int64_t rows) { return (rows + kLanes - 1) / kLanes; }

// Sixteen lanes, whatever the register: element k of a row belongs to lane k % 16.
struct Sixteen {
  static constexpr int kParts = 16 / kLanes;
  Floats part[kParts];
};

static inline Sixteen sixteen(float x) {
  Sixteen s;
  for (auto& part : s.part) part = set(x);
  return s;
}

static inline float fold(const Sixteen& s, float (*two)(float, float)) {
  float lane[16];
  for (int i = 0; i < Sixteen::kParts; ++i) store(lane + i * kLanes, s.part[i]);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = two(lane[i], lane[i + width]);
  return lane[0];
}

static inline float sum(const Sixteen& s) {
  return fold(s, [](float a, float b) { return a + b; });
}

// The vectors of sum_lanes from the `kAt`-th of step kStep, made and added as they are needed.
template <int kStep, int kAt, int kRows, class F>
static inline void add_step(const F& make, Floats (&sum)[kRows]) {
  if constexpr (kStep < 0) {
    make(leaf(kAt), sum);
  } else {
    Floats other[kRows];
    add_step<kStep - 1, 2 * kAt>(make, sum);
    add_step<kStep - 1, 2 * kAt + 1>(make, other);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sum[r] = join_lanes<kStep>(sum[r], other[r]);
  }
}

// Lane i of sum[r]: the sum of the lanes of the r-th vector that make(i, vectors) gives, in the order of `fold`.
template <int kRows, class F>
static inline void sum_lanes(const F& make, Floats (&sum)[kRows]) {
  add_step<kSteps - 1, 0>(make, sum);
}

// What sum_lanes begins with: the lanes of one sum.
static inline Floats lanes_of(const Sixteen& s) {
  if constexpr (Sixteen::kParts == 1) return s.part[0];
  else return s.part[0] + s.part[1];
}

static inline float largest(const Sixteen& s) {
  return fold(s, [](float a, float b) { return a > b ? a : b; });
}

}  // namespace bst
