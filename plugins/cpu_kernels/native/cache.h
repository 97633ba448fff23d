// The paged KV cache. A block holds rows [offset][2][kv_heads][head_size], keys at 0 and values at 1, in one of four
// types; of int8 it goes on with a scale for each row, fp32 [2][kv_heads][offset].
#pragma once
#include <cmath>
#include <cstring>
#include <limits>

#include "half.h"
#include "vec.h"

namespace bst {

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

// What kernels are written for: how many bytes an element has, kLanes of them as fp32, and how a row is written, which
// gives its scale.
struct KvF32 {
  static constexpr int kBytes = 4;
  static constexpr bool kScaled = false;
  static Floats get(const char* p, int k) { return load(reinterpret_cast<const float*>(p) + k); }
  static float put(char* to, const float* x, int n) {
    std::memcpy(to, x, sizeof(float) * static_cast<size_t>(n));
    return 1.0f;
  }
};
struct KvF16 {
  static constexpr int kBytes = 2;
  static constexpr bool kScaled = false;
  static Floats get(const char* p, int k) { return from_half(reinterpret_cast<const uint16_t*>(p) + k); }
  static float put(char* row, const float* x, int n) {
    auto* to = reinterpret_cast<uint16_t*>(row);
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) to_half(to + i, load(x + i));
    for (; i < n; ++i) to[i] = float_to_half(x[i]);
    return 1.0f;
  }
};
struct KvBF16 {
  static constexpr int kBytes = 2;
  static constexpr bool kScaled = false;
  static Floats get(const char* p, int k) { return from_bfloat(reinterpret_cast<const uint16_t*>(p) + k); }
  static float put(char* row, const float* x, int n) {
    auto* to = reinterpret_cast<uint16_t*>(row);
    for (int i = 0; i < n; ++i) to[i] = float_to_bfloat(x[i]);
    return 1.0f;
  }
};
struct KvInt8 {
  static constexpr int kBytes = 1;
  static constexpr bool kScaled = true;
  static Floats get(const char* p, int k) { return from_int8(reinterpret_cast<const int8_t*>(p) + k); }
  static float put(char* row, const float* x, int n) { return put_bytes(reinterpret_cast<int8_t*>(row), x, n); }
};

// Where things lie, in bytes.
struct Blocks {
  int64_t row, token, scales, block;  // of a row; of all rows of a token; a block's scales; from block to block

  Blocks(int bytes, bool scaled, int64_t block_size, int64_t kv_heads, int64_t head_size) {
    row = head_size * bytes, token = 2 * kv_heads * row, scales = block_size * token;
    block = scales + (scaled ? block_size * 2 * kv_heads * int64_t{sizeof(float)} : 0);
  }
};

}  // namespace bst
