// Rows of the paged KV cache: [block][offset][2][kv_heads][head_size], keys at 0 and values at 1, in one of four types.
// int8 rows have a scale each, fp32 [block][offset][2][kv_heads].
#pragma once
#include <cmath>
#include <limits>

#include "half.h"
#include "vec.h"

namespace bst {

static inline void put_halves(uint16_t* to, const float* x, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) to_half(to + i, load(x + i));
  for (; i < n; ++i) to[i] = float_to_half(x[i]);
}

// Returns the scale; NaN where x holds NaN or infinity, so that nothing computed from the row passes for a number.
static inline float put_bytes(int8_t* to, const float* x, int n) {
  float size = 0, nothing = 0;
  for (int i = 0; i < n; ++i) {
    const float magnitude = x[i] < 0 ? -x[i] : x[i];
    size = magnitude > size ? magnitude : size;
    nothing += x[i] * 0.0f;
  }
  const bool some = nothing == 0.0f && size > 1e-30f;
  const float factor = some ? 127.0f / size : 0.0f;
  for (int i = 0; i < n; ++i) to[i] = some ? static_cast<int8_t>(std::nearbyint(x[i] * factor)) : int8_t{0};
  return nothing == 0.0f ? (some ? size / 127.0f : 0.0f) : std::numeric_limits<float>::quiet_NaN();
}

// What kernels that read the cache are written for: how many bytes an element has, and kLanes of them as fp32.
struct KvF32 {
  static constexpr int kBytes = 4;
  static constexpr bool kScaled = false;
  static Floats get(const char* p, int k) { return load(reinterpret_cast<const float*>(p) + k); }
};
struct KvF16 {
  static constexpr int kBytes = 2;
  static constexpr bool kScaled = false;
  static Floats get(const char* p, int k) { return from_half(reinterpret_cast<const uint16_t*>(p) + k); }
};
struct KvBF16 {
  static constexpr int kBytes = 2;
  static constexpr bool kScaled = false;
  static Floats get(const char* p, int k) { return from_bfloat(reinterpret_cast<const uint16_t*>(p) + k); }
};
struct KvInt8 {
  static constexpr int kBytes = 1;
  static constexpr bool kScaled = true;
  static Floats get(const char* p, int k) { return from_int8(reinterpret_cast<const int8_t*>(p) + k); }
};

}  // namespace bst
