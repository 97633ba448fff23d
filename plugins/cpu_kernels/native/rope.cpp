// Rotary embedding of queries and keys; keys and values into the paged cache.
//
// Both products are rounded before they are added, as the torch reference does: the bits are the same.
#include <cmath>

#include "bestiary_cpu.h"
#include "cache.h"
#include "half.h"
#include "records.h"

using namespace bst;

namespace {

constexpr int kMostChannels = BST_MOST_CHANNELS;

// to = x turned; `to` may not be `x`. sin is negative on the first channel of a pair.
void turn(const bst_rope_args& a, const float* x, const float* cos, const float* sin, float* to) {
  const int n = a.rotary_dim, half = n / 2;
  if (a.neox) {
    for (int i = 0; i < half; ++i) to[i] = x[i] * cos[i] + x[i + half] * sin[i];
    for (int i = half; i < n; ++i) to[i] = x[i] * cos[i] + x[i - half] * sin[i];
  } else {
    for (int i = 0; i < n; ++i) to[i] = x[i] * cos[i] + x[i ^ 1] * sin[i];
  }
  std::memcpy(to + n, x + n, sizeof(float) * static_cast<size_t>(a.head_size - n));
}

// One vector into row `at` of a block's [2][kv_heads]; of int8 the largest magnitude becomes 127.
template <class Kv>
void put(const bst_rope_args& a, int64_t slot, int at, const float* x) {
  const Blocks blocks(Kv::kBytes, Kv::kScaled, a.block_size, a.kv_heads, a.head_size);
  const int64_t number = slot / a.block_size, offset = slot % a.block_size;
  char* block = static_cast<char*>(a.kv_cache) + number * blocks.block;
  char* row = block + offset * blocks.token + at * blocks.row;
  const float scale = Kv::put(row, x, a.head_size);
  if constexpr (Kv::kScaled) reinterpret_cast<float*>(block + blocks.scales)[at * a.block_size + offset] = scale;
}

void put(const bst_rope_args& a, int64_t slot, int at, const float* x) {
  switch (a.kv_type) {
    case BST_KV_F32: return put<KvF32>(a, slot, at, x);
    case BST_KV_F16: return put<KvF16>(a, slot, at, x);
    case BST_KV_BF16: return put<KvBF16>(a, slot, at, x);
    case BST_KV_INT8: return put<KvInt8>(a, slot, at, x);
  }
}

void one_query(const bst_rope_args& a, int64_t row, int head, const float* cos, const float* sin) {
  float turned[kMostChannels];
  float* x = a.query + row * a.query_stride + int64_t{head} * a.head_size;
  if (a.query_out) return turn(a, x, cos, sin, a.query_out + row * a.query_out_stride + int64_t{head} * a.head_size);
  turn(a, x, cos, sin, turned);
  std::memcpy(x, turned, sizeof(float) * static_cast<size_t>(a.rotary_dim));
}

void one_key(const bst_rope_args& a, int64_t row, int head, const float* cos, const float* sin) {
  float turned[kMostChannels];
  const int64_t offset = int64_t{head} * a.head_size;
  const float* key = a.key + row * a.key_stride + offset;
  if (a.rotary_dim > 0) turn(a, key, cos, sin, turned), key = turned;
  if (a.key_out)
    std::memcpy(a.key_out + row * a.key_out_stride + offset, key, sizeof(float) * static_cast<size_t>(a.head_size));
  const int64_t slot = a.kv_cache ? a.slots[row] : -1;
  if (slot < 0) return;
  put(a, slot, head, key);
  put(a, slot, a.kv_heads + head, a.value + row * a.value_stride + offset);
}

}  // namespace

BST_API void bst_rope(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_rope_args*>(args);
  const int queries = a.rotary_dim > 0 ? a.heads : 0, keys = a.key ? a.kv_heads : 0, each = queries + keys;
  const Range mine = share(a.rows * each, part, parts);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t row = i / each, angle = a.positions ? a.positions[row] : row;
    const int head = static_cast<int>(i % each);
    const float* cos = a.cos + angle * a.angle_stride;
    const float* sin = a.sin + angle * a.angle_stride;
    if (head < queries) one_query(a, row, head, cos, sin);
    else one_key(a, row, head - queries, cos, sin);
  }
}

BST_API void bst_angles(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_angles_args*>(args);
  const int n = a.rotary_dim, half = n / 2;
  const Range mine = share(a.rows, part, parts);
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    const float* from = a.table + a.positions[row] * n;
    float *cos = a.cos + row * n, *sin = a.sin + row * n;
    for (int i = 0; i < half; ++i) {
      const int first = a.neox ? i : 2 * i, second = a.neox ? i + half : 2 * i + 1;
      cos[first] = cos[second] = from[i];
      sin[first] = -from[half + i], sin[second] = from[half + i];
    }
  }
}
