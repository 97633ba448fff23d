// Weights that are plain numbers: fp32, fp16, bfloat16, kept as they are and multiplied in fp32.
//
// A panel is kLanes rows, column by column: [column][row], rounded up to 64 bytes.
// An output is a sum of sums: over runs of kRun columns one fma after another from zero, and these added in order.
#pragma once
#include <cstdint>
#include <cstring>

#include "vec.h"

namespace bst {

constexpr int kRun = 128;

// kLanes numbers of each type as fp32, or the first n of them and zeros.
struct F32 {
  using T = float;
  static Floats get(const T* p) { return load(p); }
  static Floats get(const T* p, int n) { return load(p, n); }
};
struct F16 {
  using T = uint16_t;
  static Floats get(const T* p) { return from_half(p); }
  static Floats get(const T* p, int n) { return from_half(p, n); }
};
struct BF16 {
  using T = uint16_t;
  static Floats get(const T* p) { return from_bfloat(p); }
  static Floats get(const T* p, int n) { return from_bfloat(p, n); }
};

static inline int64_t float_panel_bytes(int size, int64_t columns) {
  return (columns * kLanes * size + 63) / 64 * 64;
}

static inline void pack_floats(uint8_t* panel, int64_t bytes, int size, int64_t columns, const uint8_t* source,
                               int64_t stride, int rows) {
  std::memset(panel, 0, static_cast<size_t>(bytes));
  for (int lane = 0; lane < rows; ++lane)
    for (int64_t k = 0; k < columns; ++k)
      std::memcpy(panel + (k * kLanes + lane) * size, source + lane * stride + k * size, static_cast<size_t>(size));
}

}  // namespace bst
