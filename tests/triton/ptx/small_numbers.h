// Numbers of 16 and 8 bits.
#pragma once
#include <algorithm>
#include <cmath>

#include "machine.h"

namespace ptx {

// fp16 and bf16 are computed in double and rounded once: a product of two, and a sum with it, are exact enough there.
struct Half {
  uint16_t bits;
  double value() const { return double(as<_Float16>(bits)); }
  static Half of(double x) { return {static_cast<uint16_t>(bits_of(static_cast<_Float16>(x)))}; }
};

struct Brain {
  uint16_t bits;
  double value() const { return double(as<float>(uint64_t(bits) << 16)); }
  static Brain of(double x) {
    if (std::isnan(x)) return {0x7FFF};
    float near = static_cast<float>(x);
    uint32_t raw = static_cast<uint32_t>(bits_of(near));
    if (double(near) != x && std::isfinite(near)) {  // round to odd, so that a second rounding does no harm
      if (std::fabs(double(near)) > std::fabs(x)) raw--;
      raw |= 1;
    }
    return {static_cast<uint16_t>((raw + 0x7FFF + (raw >> 16 & 1)) >> 16)};
  }
};

struct E4m3 {
  uint8_t bits;
  double value() const {
    const int exponent = bits >> 3 & 15, mantissa = bits & 7;
    const double size = exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
    if ((bits & 0x7F) == 0x7F) return NAN;
    return bits & 0x80 ? -size : size;
  }
  static E4m3 of(double x) {  // what is too large becomes the largest
    if (std::isnan(x)) return {0x7F};
    const uint8_t sign = std::signbit(x) ? 0x80 : 0;
    const double size = std::min(std::fabs(x), 448.0);
    int exponent = std::max(std::ilogb(std::max(size, 0x1p-20)), -6);
    const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 3 - exponent)));  // of 1/8 of that power of two
    return {static_cast<uint8_t>(sign | (((exponent + 6) << 3) + steps))};
  }
};

struct E5m2 {
  uint8_t bits;
  double value() const { return Half{static_cast<uint16_t>(bits << 8)}.value(); }
  static E5m2 of(double x) {
    if (std::isnan(x)) return {0x7F};
    const uint8_t sign = std::signbit(x) ? 0x80 : 0;
    const double size = std::min(std::fabs(x), 57344.0);
    int exponent = std::max(std::ilogb(std::max(size, 0x1p-40)), -14);
    const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 2 - exponent)));
    return {static_cast<uint8_t>(sign | (((exponent + 14) << 2) + steps))};
  }
};

}  // namespace ptx
