// AVX-512 (F, BW, VL, DQ, VNNI): 16 lanes. Included by vec.h alone.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace bst {

constexpr int kLanes = 16;
constexpr int kPanels = 4;  // neighbouring panels that few rows meet at once
#define BST_ALL_INLINE __attribute__((flatten))  // of a loop from whose many versions GCC would call what it contains
// Whether `dots` multiplies by code - 128 instead of the code.
constexpr bool signed_dot(int) { return false; }
constexpr const char* kIsaName = "avx512";

struct Floats { __m512 v; };
struct Ints { __m512i v; };
struct Bytes { __m512i v; };  // four bytes a lane

static inline Floats set(float x) { return {_mm512_set1_ps(x)}; }
static inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x.v); }
static inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// The second operand where either is NaN, as the instruction has it.
static inline Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline Floats from_half(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline void to_half(uint16_t* p, Floats x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
static inline Floats from_bfloat(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

// The first n < kLanes numbers, then zeros.
static inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }
static inline Floats load(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
static inline Floats from_half(const uint16_t* p, int n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p))};
}
static inline Floats from_bfloat(const uint16_t* p, int n) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}

static inline Ints set(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline Ints load(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
static inline void store(int32_t* p, Ints x) { _mm512_storeu_si512(p, x.v); }
static inline Ints operator+(Ints a, Ints b) { return {_mm512_add_epi32(a.v, b.v)}; }
static inline Ints operator-(Ints a, Ints b) { return {_mm512_sub_epi32(a.v, b.v)}; }
static inline Ints operator&(Ints a, Ints b) { return {_mm512_and_si512(a.v, b.v)}; }
static inline Ints max(Ints a, Ints b) { return {_mm512_max_epi32(a.v, b.v)}; }
template <int n> static inline Ints shift_left(Ints a) { return {_mm512_slli_epi32(a.v, n)}; }
static inline int32_t sum(Ints a) { return _mm512_reduce_add_epi32(a.v); }
static inline int32_t largest(Ints a) { return _mm512_reduce_max_epi32(a.v); }
static inline Floats to_floats(Ints a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline Ints round(Floats a) { return {_mm512_cvtps_epi32(a.v)}; }  // to nearest, ties to even
static inline Ints bits(Floats a) { return {_mm512_castps_si512(a.v)}; }
static inline Floats as_floats(Ints a) { return {_mm512_castsi512_ps(a.v)}; }
static inline Floats from_uint8(const uint8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
static inline Floats from_int8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
static inline void to_int8(int8_t* p, Ints a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a.v));
}

static inline Bytes load_bytes(const void* p) { return {_mm512_loadu_si512(p)}; }
static inline void store_bytes(void* p, Bytes x) { _mm512_storeu_si512(p, x.v); }
static inline Bytes set_bytes(int x) { return {_mm512_set1_epi8(static_cast<char>(x))}; }
static inline Bytes operator&(Bytes a, Bytes b) { return {_mm512_and_si512(a.v, b.v)}; }
static inline Bytes operator|(Bytes a, Bytes b) { return {_mm512_or_si512(a.v, b.v)}; }
// Shifts of 16-bit words: bits cross from byte to byte, so the caller masks what he keeps.
template <int n> static inline Bytes left(Bytes a) { return {_mm512_slli_epi16(a.v, n)}; }
template <int n> static inline Bytes right(Bytes a) { return {_mm512_srli_epi16(a.v, n)}; }
static inline Bytes lookup(const uint8_t* sixteen, Bytes index) {
  const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(sixteen));
  return {_mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), index.v)};
}
static inline Bytes four(const int8_t* p) {
  int32_t x;
  std::memcpy(&x, p, 4);
  return {_mm512_set1_epi32(x)};
}

// A step of `sum_lanes` (vec.h): halves, quarters, pairs, neighbours are added, of two vectors at once; lane 4 k + j at
// the end belongs to the (4 j + k)-th vector of the beginning.
constexpr int kSteps = 4;
constexpr int leaf(int i) { return i % 4 * 4 + i / 4; }
template <int kStep> static inline Floats join_lanes(Floats a, Floats b) {
  const __m512 u = a.v, v = b.v;
  if constexpr (kStep == 0) return {_mm512_add_ps(_mm512_shuffle_f32x4(u, v, 0x44), _mm512_shuffle_f32x4(u, v, 0xEE))};
  if constexpr (kStep == 1) return {_mm512_add_ps(_mm512_shuffle_f32x4(u, v, 0x88), _mm512_shuffle_f32x4(u, v, 0xDD))};
  if constexpr (kStep == 2) return {_mm512_add_ps(_mm512_shuffle_ps(u, v, 0x44), _mm512_shuffle_ps(u, v, 0xEE))};
  return {_mm512_add_ps(_mm512_shuffle_ps(u, v, 0x88), _mm512_shuffle_ps(u, v, 0xDD))};
}

// Lane j of x[i] becomes lane i of x[j].
static inline void transpose(Floats (&x)[kLanes]) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(x[i].v, x[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(x[i].v, x[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      b[i + 2 * j] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0x44);
      b[i + 2 * j + 1] = _mm512_shuffle_ps(a[i + j], a[i + j + 2], 0xEE);
    }
  for (int i = 0; i < 4; ++i) {
    const __m512 p = _mm512_shuffle_f32x4(b[i], b[i + 4], 0x44), q = _mm512_shuffle_f32x4(b[i], b[i + 4], 0xEE);
    const __m512 r = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0x44);
    const __m512 s = _mm512_shuffle_f32x4(b[i + 8], b[i + 12], 0xEE);
    x[i].v = _mm512_shuffle_f32x4(p, r, 0x88), x[i + 4].v = _mm512_shuffle_f32x4(p, r, 0xDD);
    x[i + 8].v = _mm512_shuffle_f32x4(q, s, 0x88), x[i + 12].v = _mm512_shuffle_f32x4(q, s, 0xDD);
  }
}

// sum[r] += the dot products of vectors from..to-1 of `q` with the same groups of four of row r's activations.
// `kBits`: the weights lie below 2^kBits. VNNI needs no such promise: its sums are exact.
template <int kBits, int kRows, int kFrom, int kTo>
static inline void dots(const Bytes* q, const int8_t* const (&x)[kRows], Ints (&sum)[kRows]) {
#pragma GCC unroll 8
  for (int g = kFrom; g < kTo; ++g) {
    const Bytes w = q[g];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) sum[r].v = _mm512_dpbusd_epi32(sum[r].v, w.v, four(x[r] + 4 * g).v);
  }
}

}  // namespace bst
