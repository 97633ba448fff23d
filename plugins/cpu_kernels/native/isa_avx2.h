// AVX2 with FMA and F16C: 8 lanes. Included by vec.h alone.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace bst {

constexpr int kLanes = 8;
constexpr int kPanels = 4;  // neighbouring panels that few rows meet at once
#define BST_ALL_INLINE __attribute__((flatten))  // of a loop from whose many versions GCC would call what it contains
// Whether `dots` multiplies by code - 128 instead of the code.
constexpr bool signed_dot(int bits) { return bits == 8; }
constexpr const char* kIsaName = "avx2";

struct Floats { __m256 v; };
struct Ints { __m256i v; };
struct Bytes { __m256i v; };  // four bytes a lane

static inline __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
static inline __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
static inline __m128i load64(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }

static inline Floats set(float x) { return {_mm256_set1_ps(x)}; }
static inline Floats load(const float* p) { return {_mm256_loadu_ps(p)}; }
static inline void store(float* p, Floats x) { _mm256_storeu_ps(p, x.v); }
static inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.v, b.v)}; }
static inline Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.v, b.v)}; }
static inline Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.v, b.v)}; }
static inline Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.v, b.v)}; }
static inline Floats fma(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
// The second operand where either is NaN, as the instruction has it.
static inline Floats max(Floats a, Floats b) { return {_mm256_max_ps(a.v, b.v)}; }
static inline Floats min(Floats a, Floats b) { return {_mm256_min_ps(a.v, b.v)}; }
static inline Floats from_half(const uint16_t* p) { return {_mm256_cvtph_ps(load128(p))}; }
static inline void to_half(uint16_t* p, Floats x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
static inline Floats from_bfloat(const uint16_t* p) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p)), 16))};
}

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

static inline Ints set(int32_t x) { return {_mm256_set1_epi32(x)}; }
static inline Ints load(const int32_t* p) { return {load256(p)}; }
static inline void store(int32_t* p, Ints x) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.v); }
static inline Ints operator+(Ints a, Ints b) { return {_mm256_add_epi32(a.v, b.v)}; }
static inline Ints operator-(Ints a, Ints b) { return {_mm256_sub_epi32(a.v, b.v)}; }
static inline Ints operator&(Ints a, Ints b) { return {_mm256_and_si256(a.v, b.v)}; }
static inline Ints max(Ints a, Ints b) { return {_mm256_max_epi32(a.v, b.v)}; }
template <int n> static inline Ints shift_left(Ints a) { return {_mm256_slli_epi32(a.v, n)}; }
static inline int32_t sum(Ints a) {
  __m128i x = _mm_add_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  x = _mm_add_epi32(x, _mm_shuffle_epi32(x, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(x, _mm_shuffle_epi32(x, 0xB1)));
}
static inline int32_t largest(Ints a) {
  __m128i x = _mm_max_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  x = _mm_max_epi32(x, _mm_shuffle_epi32(x, 0x4E));
  return _mm_cvtsi128_si32(_mm_max_epi32(x, _mm_shuffle_epi32(x, 0xB1)));
}
static inline Floats to_floats(Ints a) { return {_mm256_cvtepi32_ps(a.v)}; }
static inline Ints round(Floats a) { return {_mm256_cvtps_epi32(a.v)}; }  // to nearest, ties to even
static inline Ints bits(Floats a) { return {_mm256_castps_si256(a.v)}; }
static inline Floats as_floats(Ints a) { return {_mm256_castsi256_ps(a.v)}; }
static inline Floats from_uint8(const uint8_t* p) { return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(load64(p)))}; }
static inline Floats from_int8(const int8_t* p) { return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(load64(p)))}; }
static inline void to_int8(int8_t* p, Ints a) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(a.v), _mm256_extracti128_si256(a.v, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

static inline Bytes load_bytes(const void* p) { return {load256(p)}; }
static inline void store_bytes(void* p, Bytes x) { _mm256_storeu_si256(static_cast<__m256i*>(p), x.v); }
static inline Bytes set_bytes(int x) { return {_mm256_set1_epi8(static_cast<char>(x))}; }
static inline Bytes operator&(Bytes a, Bytes b) { return {_mm256_and_si256(a.v, b.v)}; }
static inline Bytes operator|(Bytes a, Bytes b) { return {_mm256_or_si256(a.v, b.v)}; }
// Shifts of 16-bit words: bits cross from byte to byte, so the caller masks what he keeps.
template <int n> static inline Bytes left(Bytes a) { return {_mm256_slli_epi16(a.v, n)}; }
template <int n> static inline Bytes right(Bytes a) { return {_mm256_srli_epi16(a.v, n)}; }
static inline Bytes lookup(const uint8_t* sixteen, Bytes index) {
  return {_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(sixteen)), index.v)};
}
static inline Bytes four(const int8_t* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return {_mm256_set1_epi32(x)};
}

// A step of `sum_lanes` (vec.h): halves, pairs, neighbours are added, of two vectors at once; lane 4 k + j at the end
// belongs to the (2 j + k)-th vector of the beginning.
constexpr int kSteps = 3;
constexpr int leaf(int i) { return i / 2 + i % 2 * 4; }
template <int kStep> static inline Floats join_lanes(Floats a, Floats b) {
  const __m256 u = a.v, v = b.v;
  if constexpr (kStep == 0)
    return {_mm256_add_ps(_mm256_permute2f128_ps(u, v, 0x20), _mm256_permute2f128_ps(u, v, 0x31))};
  if constexpr (kStep == 1) return {_mm256_add_ps(_mm256_shuffle_ps(u, v, 0x44), _mm256_shuffle_ps(u, v, 0xEE))};
  return {_mm256_add_ps(_mm256_shuffle_ps(u, v, 0x88), _mm256_shuffle_ps(u, v, 0xDD))};
}

// Lane j of x[i] becomes lane i of x[j].
static inline void transpose(Floats (&x)[kLanes]) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2) {
    a[i] = _mm256_unpacklo_ps(x[i].v, x[i + 1].v);
    a[i + 1] = _mm256_unpackhi_ps(x[i].v, x[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
      b[i + 2 * j + 1] = _mm256_shuffle_ps(a[i + j], a[i + j + 2], 0xEE);
    }
  for (int i = 0; i < 4; ++i) {
    x[i].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
    x[i + 4].v = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
  }
}

// vpmaddubsw adds pairs of products into 16 bits: at most 2 * 127 * (2^kBits - 1). Of 4-bit codes eight such sums fit
// (30480), of 5-bit ones four, of 6-bit ones two; only then are they widened.
template <int kBits, int kRows, int kFrom, int kTo>
static inline void small_dots(const Bytes* q, const int8_t* const (&x)[kRows], Ints (&sum)[kRows]) {
  constexpr int kDepth = kBits == 4 ? 8 : kBits == 5 ? 4 : 2;
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
  for (int begin = kFrom; begin < kTo; begin += kDepth) {
    __m256i words[kRows];
#pragma GCC unroll 8
    for (int g = begin; g < begin + kDepth; ++g) {
      const __m256i w = q[g].v;
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m256i product = _mm256_maddubs_epi16(w, four(x[r] + 4 * g).v);
        words[r] = g == begin ? product : _mm256_add_epi16(words[r], product);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum[r].v = _mm256_add_epi32(sum[r].v, _mm256_madd_epi16(words[r], ones));
  }
}

// 8-bit codes as signed numbers: |w| * (x with w's sign), in pairs at most 2 * 128 * 127 = 32512.
template <int kRows>
static inline void signed_dots(const Bytes* q, const int8_t* const (&x)[kRows], Ints (&sum)[kRows]) {
  const __m256i ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8(-128);
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    const __m256i w = _mm256_xor_si256(q[g].v, flip), size = _mm256_abs_epi8(w);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m256i product = _mm256_maddubs_epi16(size, _mm256_sign_epi8(four(x[r] + 4 * g).v, w));
      sum[r].v = _mm256_add_epi32(sum[r].v, _mm256_madd_epi16(product, ones));
    }
  }
}

// sum[r] += the dot products of vectors from..to-1 of `q` with the same groups of four of row r's activations.
template <int kBits, int kRows, int kFrom, int kTo>
static inline void dots(const Bytes* q, const int8_t* const (&x)[kRows], Ints (&sum)[kRows]) {
  if constexpr (kBits == 8) signed_dots(q, x, sum);
  else small_dots<kBits, kRows, kFrom, kTo>(q, x, sum);
}

}  // namespace bst
