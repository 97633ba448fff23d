// Functions of vectors that the standard library has only for single numbers. Same bits in every instruction set.
#pragma once
#include "vec.h"

namespace bst {

// e^x to about 1 unit in the last place. Below -87.3 and above 88.3 the ends' values; NaN stays NaN.
static inline Floats exp(Floats x) {
  x = max(set(-87.3f), min(set(88.3f), x));
  const Ints n = round(x * set(1.44269504f));
  const Floats whole = to_floats(n);
  const Floats r = fma(whole, set(1.42860677e-6f), fma(whole, set(-0.693148613f), x));  // ln 2 in two pieces
  Floats p = set(1.0f / 720);
  p = fma(p, r, set(1.0f / 120));
  p = fma(p, r, set(1.0f / 24));
  p = fma(p, r, set(1.0f / 6));
  p = fma(p, r, set(0.5f));
  p = fma(p, r, set(1.0f));
  p = fma(p, r, set(1.0f));
  return p * as_floats(shift_left<23>(n + set(int32_t{127})));
}

static inline Floats sigmoid(Floats x) { return set(1.0f) / (set(1.0f) + exp(set(0.0f) - x)); }

static inline Floats tanh(Floats x) { return set(1.0f) - set(2.0f) / (set(1.0f) + exp(x + x)); }

// Abramowitz and Stegun 7.1.26: within 1.5e-7.
static inline Floats erf(Floats x) {
  const Floats size = as_floats(bits(x) & set(int32_t{0x7FFFFFFF}));
  const Floats t = set(1.0f) / fma(set(0.3275911f), size, set(1.0f));
  Floats p = set(1.061405429f);
  p = fma(p, t, set(-1.453152027f));
  p = fma(p, t, set(1.421413741f));
  p = fma(p, t, set(-0.284496736f));
  p = fma(p, t, set(0.254829592f));
  const Floats y = set(1.0f) - p * t * exp(set(0.0f) - x * x);
  const Ints sign = bits(x) & set(INT32_MIN);
  return as_floats(bits(y) + sign);  // y is not negative, so its sign bit is free
}

}  // namespace bst
