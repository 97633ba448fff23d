// IEEE half and bfloat16, one number at a time; rounding to nearest, ties to even.
#pragma once
#include <cstdint>
#include <cstring>

namespace bst {

static inline float bfloat_to_float(uint16_t h) {
  const uint32_t n = static_cast<uint32_t>(h) << 16;
  float x;
  std::memcpy(&x, &n, 4);
  return x;
}

static inline uint16_t float_to_bfloat(float x) {
  uint32_t n;
  std::memcpy(&n, &x, 4);
  if ((n & 0x7FFFFFFF) > 0x7F800000) return static_cast<uint16_t>((n >> 16) | 0x40);
  return static_cast<uint16_t>((n + 0x7FFF + ((n >> 16) & 1)) >> 16);
}

static inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t exponent = (h >> 10) & 31, fraction = h & 1023;
  float x;
  if (exponent == 0) {  // zero and subnormal numbers: fraction * 2^-24 is exact
    x = static_cast<float>(fraction) * 0x1p-24f;
    uint32_t n;
    std::memcpy(&n, &x, 4);
    n |= sign;
    std::memcpy(&x, &n, 4);
    return x;
  }
  const uint32_t quiet = exponent == 31 && fraction ? 0x400000 : 0;  // conversions quiet a NaN
  const uint32_t n = sign | (exponent == 31 ? 0x7F800000 : (exponent + 112) << 23) | fraction << 13 | quiet;
  std::memcpy(&x, &n, 4);
  return x;
}

static inline uint16_t float_to_half(float x) {
  uint32_t n;
  std::memcpy(&n, &x, 4);
  const uint16_t sign = static_cast<uint16_t>((n >> 16) & 0x8000);
  n &= 0x7FFFFFFF;
  if (n > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00 | ((n >> 13) & 0x3FF));
  if (n >= 0x477FF000) return sign | 0x7C00;  // 65520 and above round to infinity
  if (n < 0x38800000) {                       // below the smallest normal number: let fp32 addition round
    float size;
    std::memcpy(&size, &n, 4);
    size += 0.5f;  // the last bit of 0.5 is worth 2^-24
    std::memcpy(&n, &size, 4);
    return static_cast<uint16_t>(sign | (n - 0x3F000000));
  }
  n += 0xFFF + ((n >> 13) & 1) - (112u << 23);
  return static_cast<uint16_t>(sign | (n >> 13));
}

}  // namespace bst
