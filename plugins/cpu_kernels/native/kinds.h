// How a block of weights meets a block of activations: the one place where quantized products are computed.
//
// A decoded block is 32 columns of one panel (kLanes rows of the matrix): eight vectors of codes, vector g holding
// four columns 4g…4g+3 of every row, and one or two vectors of scales.
//
//   vector g:   row 0: 4g 4g+1 4g+2 4g+3 | row 1: 4g 4g+1 4g+2 4g+3 | …
//
// A lane is an output, so nothing is ever summed across lanes. An output's arithmetic is, block after block,
//
//   acc = fma(weight_scale * x_scale, float(integer dot product), acc)
//   acc = fma(weight_minimum, x_scaled_sum, acc)                        formats with a minimum
//
// whatever the number of rows, the panel's width or the thread: results depend on the row alone.
#pragma once
#include "records.h"
#include "vec.h"

namespace bst {

// kBits: codes lie below 2^kBits. kZero: a weight is (code - kZero) * scale; a power of two or 0.
// kMinimum: plus a minimum. kHalves: columns 0…15 and 16…31 have scales of their own.
template <int kBits_, int kZero_, bool kMinimum_ = false, bool kHalves_ = false>
struct Kind {
  static constexpr int kBits = kBits_, kZero = kZero_;
  static constexpr bool kMinimum = kMinimum_, kHalves = kHalves_;
};

using Bits4 = Kind<4, 8>;
using Bits4Min = Kind<4, 0, true>;
using Bits5 = Kind<5, 16>;
using Bits5Min = Kind<5, 0, true>;
using Bits6 = Kind<6, 32, false, true>;
using Bits8 = Kind<8, 128>;

constexpr int log2_of(int n) { return n <= 1 ? 0 : 1 + log2_of(n / 2); }

// A decoded block.
struct Decoded {
  Bytes q[8];
  Floats scale;
  Floats second;  // the minimum, or the scale of columns 16…31
};

template <class K>
static inline Ints start(int32_t minus_sum) {
  if constexpr (K::kZero == 0 || signed_dot(K::kBits)) return set(int32_t{0});
  else return shift_left<log2_of(K::kZero)>(set(minus_sum));
}

// acc[r] += block · x[r], for kRows neighbouring rows of a tile.
template <class K, int kRows>
static inline void add_block(const Decoded& w, const Record* x, Floats (&acc)[kRows]) {
  const int8_t* q[kRows];
  Ints sum[kRows];
  for (int r = 0; r < kRows; ++r) q[r] = x[r].q;
  if constexpr (K::kHalves) {
    for (int r = 0; r < kRows; ++r) sum[r] = start<K>(x[r].minus_sum_low);
    dots<K::kBits, kRows, 0, 4>(w.q, q, sum);
    for (int r = 0; r < kRows; ++r) {
      acc[r] = fma(w.scale * set(x[r].scale), to_floats(sum[r]), acc[r]);
      sum[r] = start<K>(x[r].minus_sum - x[r].minus_sum_low);
    }
    dots<K::kBits, kRows, 4, 8>(w.q, q, sum);
    for (int r = 0; r < kRows; ++r) acc[r] = fma(w.second * set(x[r].scale), to_floats(sum[r]), acc[r]);
  } else {
    for (int r = 0; r < kRows; ++r) sum[r] = start<K>(x[r].minus_sum);
    dots<K::kBits, kRows, 0, 8>(w.q, q, sum);
    for (int r = 0; r < kRows; ++r) {
      acc[r] = fma(w.scale * set(x[r].scale), to_floats(sum[r]), acc[r]);
      if constexpr (K::kMinimum) acc[r] = fma(w.second, set(x[r].scaled_sum), acc[r]);
    }
  }
}

}  // namespace bst
