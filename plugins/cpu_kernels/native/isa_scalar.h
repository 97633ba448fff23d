// Portable C++: 8 lanes written out as loops. What the sanitizers read, and what every other processor runs.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"

namespace bst {

constexpr int kLanes = 8;
constexpr int kPanels = 1;  // neighbouring panels that few rows meet at once
#define BST_ALL_INLINE      // nothing that it would make faster
// Whether `dots` multiplies by code - 128 instead of the code.
constexpr bool signed_dot(int) { return false; }
constexpr const char* kIsaName = "scalar";

struct Floats { float v[kLanes]; };
struct Ints { int32_t v[kLanes]; };
struct Bytes { uint8_t v[4 * kLanes]; };  // four bytes a lane

#define BST_EACH(result, count, value) \
  do { for (int i = 0; i < (count); ++i) (result).v[i] = (value); } while (0)
#define BST_OP(type, name, value) \
  static inline type name(type a, type b) { type c; BST_EACH(c, kLanes, value); return c; }

static inline int32_t bits_of(float x) { int32_t n; std::memcpy(&n, &x, 4); return n; }
static inline float float_of(int32_t n) { float x; std::memcpy(&x, &n, 4); return x; }
// Sums of 32 bits wrap where they overflow, as they do in vector registers.
static inline int32_t wrap(int64_t x) { return static_cast<int32_t>(static_cast<uint32_t>(x)); }

static inline Floats set(float x) { Floats c; BST_EACH(c, kLanes, x); return c; }
static inline Floats load(const float* p) { Floats c; std::memcpy(&c, p, sizeof c); return c; }
static inline void store(float* p, Floats x) { std::memcpy(p, &x, sizeof x); }
BST_OP(Floats, operator+, a.v[i] + b.v[i])
BST_OP(Floats, operator-, a.v[i] - b.v[i])
BST_OP(Floats, operator*, a.v[i] * b.v[i])
BST_OP(Floats, operator/, a.v[i] / b.v[i])
BST_OP(Floats, max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
BST_OP(Floats, min, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
static inline Floats fma(Floats a, Floats b, Floats c) {
  BST_EACH(c, kLanes, std::fma(a.v[i], b.v[i], c.v[i]));
  return c;
}
static inline Floats from_half(const uint16_t* p) { Floats c; BST_EACH(c, kLanes, half_to_float(p[i])); return c; }
static inline void to_half(uint16_t* p, Floats x) { for (int i = 0; i < kLanes; ++i) p[i] = float_to_half(x.v[i]); }
static inline Floats from_bfloat(const uint16_t* p) { Floats c; BST_EACH(c, kLanes, bfloat_to_float(p[i])); return c; }

// The first n < kLanes numbers, then zeros.
static inline Floats load(const float* p, int n) {
  float x[kLanes] = {};
  std::memcpy(x, p, sizeof(float) * static_cast<size_t>(n));
  return load(x);
}
static inline Floats from_half(const uint16_t* p, int n) {
  uint16_t x[kLanes] = {};
  std::memcpy(x, p, sizeof(uint16_t) * static_cast<size_t>(n));
  return from_half(x);
}
static inline Floats from_bfloat(const uint16_t* p, int n) {
  uint16_t x[kLanes] = {};
  std::memcpy(x, p, sizeof(uint16_t) * static_cast<size_t>(n));
  return from_bfloat(x);
}

static inline Ints set(int32_t x) { Ints c; BST_EACH(c, kLanes, x); return c; }
static inline Ints load(const int32_t* p) { Ints c; std::memcpy(&c, p, sizeof c); return c; }
static inline void store(int32_t* p, Ints x) { std::memcpy(p, &x, sizeof x); }
BST_OP(Ints, operator+, wrap(int64_t{a.v[i]} + b.v[i]))
BST_OP(Ints, operator-, wrap(int64_t{a.v[i]} - b.v[i]))
BST_OP(Ints, operator&, a.v[i] & b.v[i])
BST_OP(Ints, max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
template <int n> static inline Ints shift_left(Ints a) {
  Ints c;
  BST_EACH(c, kLanes, wrap(int64_t{a.v[i]} * (int64_t{1} << n)));
  return c;
}
static inline int32_t sum(Ints a) {
  int32_t total = 0;
  for (int32_t x : a.v) total = wrap(int64_t{total} + x);
  return total;
}
static inline int32_t largest(Ints a) {
  int32_t most = a.v[0];
  for (int32_t x : a.v) most = x > most ? x : most;
  return most;
}
static inline Floats to_floats(Ints a) { Floats c; BST_EACH(c, kLanes, static_cast<float>(a.v[i])); return c; }
// To nearest, ties to even; what does not fit becomes INT32_MIN, as on x86.
static inline Ints round(Floats a) {
  Ints c;
  BST_EACH(c, kLanes, std::fabs(a.v[i]) < 2147483648.0f ? static_cast<int32_t>(std::nearbyint(a.v[i])) : INT32_MIN);
  return c;
}
static inline Ints bits(Floats a) { Ints c; BST_EACH(c, kLanes, bits_of(a.v[i])); return c; }
static inline Floats as_floats(Ints a) { Floats c; BST_EACH(c, kLanes, float_of(a.v[i])); return c; }
static inline Floats from_uint8(const uint8_t* p) { Floats c; BST_EACH(c, kLanes, static_cast<float>(p[i])); return c; }
static inline Floats from_int8(const int8_t* p) { Floats c; BST_EACH(c, kLanes, static_cast<float>(p[i])); return c; }
static inline void to_int8(int8_t* p, Ints a) {
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(a.v[i] > 127 ? 127 : a.v[i] < -128 ? -128 : a.v[i]);
}

static inline Bytes load_bytes(const void* p) { Bytes c; std::memcpy(&c, p, sizeof c); return c; }
static inline void store_bytes(void* p, Bytes x) { std::memcpy(p, &x, sizeof x); }
static inline Bytes set_bytes(int x) { Bytes c; BST_EACH(c, 4 * kLanes, static_cast<uint8_t>(x)); return c; }
static inline Bytes operator&(Bytes a, Bytes b) { Bytes c; BST_EACH(c, 4 * kLanes, a.v[i] & b.v[i]); return c; }
static inline Bytes operator|(Bytes a, Bytes b) { Bytes c; BST_EACH(c, 4 * kLanes, a.v[i] | b.v[i]); return c; }
// Shifts of bytes; wider ones elsewhere let bits cross, so the caller masks what he keeps.
template <int n> static inline Bytes left(Bytes a) {
  Bytes c;
  BST_EACH(c, 4 * kLanes, static_cast<uint8_t>(a.v[i] << n));
  return c;
}
template <int n> static inline Bytes right(Bytes a) {
  Bytes c;
  BST_EACH(c, 4 * kLanes, static_cast<uint8_t>(a.v[i] >> n));
  return c;
}
static inline Bytes lookup(const uint8_t* sixteen, Bytes index) {
  Bytes c;
  BST_EACH(c, 4 * kLanes, sixteen[index.v[i]]);
  return c;
}

// A step of `sum_lanes` (vec.h): each of the sums in a and in b is half as wide afterwards; those of a come first.
constexpr int kSteps = 3;
constexpr int leaf(int i) { return i; }
template <int kStep> static inline Floats join_lanes(Floats a, Floats b) {
  constexpr int kWidth = kLanes >> (kStep + 1), kSums = kLanes / 2 / kWidth;
  Floats c;
  for (int i = 0; i < kSums; ++i)
    for (int k = 0; k < kWidth; ++k) {
      const int from = 2 * i * kWidth + k;
      c.v[i * kWidth + k] = a.v[from] + a.v[from + kWidth];
      c.v[(i + kSums) * kWidth + k] = b.v[from] + b.v[from + kWidth];
    }
  return c;
}

// Lane j of x[i] becomes lane i of x[j].
static inline void transpose(Floats (&x)[kLanes]) {
  for (int i = 0; i < kLanes; ++i)
    for (int j = 0; j < i; ++j) {
      const float y = x[i].v[j];
      x[i].v[j] = x[j].v[i], x[j].v[i] = y;
    }
}

// sum[r] += the dot products of vectors from..to-1 of `q` with the same groups of four of row r's activations.
template <int kBits, int kRows, int kFrom, int kTo>
static inline void dots(const Bytes* q, const int8_t* const (&x)[kRows], Ints (&sum)[kRows]) {
  for (int r = 0; r < kRows; ++r)
    for (int g = kFrom; g < kTo; ++g)
      for (int i = 0; i < 4 * kLanes; ++i) sum[r].v[i / 4] += q[g].v[i] * x[r][4 * g + i % 4];
}

#undef BST_OP
#undef BST_EACH

}  // namespace bst
