// Attention over the paged cache: decode and prefill are the same code.
//
// Keys are taken in splits of kSplit positions, counted from position 0. A split's softmax stands by itself (largest
// score, sum, weighted values), and splits are joined in order; so a query's result depends on its own keys alone,
// whatever else is in the batch, and whether one thread walked its splits or several.
//
// Queries that read the same keys are taken together: the heads of a group (GQA), and neighbouring tokens.
#include "attention.h"

#include <type_traits>

#include "math.h"

namespace bst {
namespace {

// One split's keys, and for each query which of them it sees.
struct Split {
  int64_t first;             // position of the first key
  int count, width;          // as many as any query sees; rounded up to 16
  const char* key[kSplit];   // rows of the cache; a value lies `to_value` bytes behind its key
  int64_t to_value;
  float key_scale[kSplit], value_scale[kSplit];  // int8 caches
};

struct Visible {
  int begin, end;  // within a split
};

template <class Kv>
void find_keys(const bst_attention_args& a, const Queries& q, int64_t first, int count, Split& s) {
  const int32_t* table = a.block_tables + q.sequence * a.table_stride;
  const Blocks blocks(Kv::kBytes, Kv::kScaled, a.block_size, a.kv_heads, a.head_size);
  s.first = first, s.count = count, s.width = (count + 15) / 16 * 16, s.to_value = a.kv_heads * blocks.row;
  for (int k = 0; k < count;) {
    const int64_t number = (first + k) / a.block_size;
    const char* block = static_cast<const char*>(a.kv_cache) + table[number] * blocks.block;
    const auto* key_scales = reinterpret_cast<const float*>(block + blocks.scales) + q.kv_head * a.block_size;
    const float* value_scales = key_scales + a.kv_heads * a.block_size;
    for (auto offset = first + k - number * a.block_size; offset < a.block_size && k < count; ++offset, ++k) {
      s.key[k] = block + offset * blocks.token + q.kv_head * blocks.row;
      if constexpr (Kv::kScaled) s.key_scale[k] = key_scales[offset], s.value_scale[k] = value_scales[offset];
    }
  }
}

// Keys and values of one head lie a whole token apart, too far for the processor to see a stream in them.
void fetch(const Split& s, int first, int64_t bytes) {
  for (int k = first; k < first + kLanes && k < s.count; ++k)
    for (int64_t at = 0; at < bytes; at += 64) {
      __builtin_prefetch(s.key[k] + at);
      __builtin_prefetch(s.key[k] + s.to_value + at, 0, 2);
    }
}

constexpr int kTogether = 4;  // queries whose sums are in registers at once

// score[r][first + k] = q[r] · key[first + k] for kLanes keys. Channel c is summed in lane c % 16.
template <class Kv, int kRows>
void dot_products(const Split& s, int channels, int first, const float* const* row, float (*score)[kSplit]) {
  Sixteen sums[kRows][kLanes];
  for (int k = 0; k < kLanes; ++k) {
    const char* key = s.key[first + k < s.count ? first + k : first];
    Sixteen sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = sixteen(0.0f);
    for (int c = 0; c < channels; c += 16) {
#pragma GCC unroll 2
      for (int i = 0; i < Sixteen::kParts; ++i) {
        const Floats x = Kv::get(key, c + i * kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) sum[r].part[i] = fma(load(row[r] + c + i * kLanes), x, sum[r].part[i]);
      }
    }
    for (int r = 0; r < kRows; ++r) sums[r][k] = sum[r];
  }
  for (int r = 0; r < kRows; ++r) store(score[r] + first, sum_each(sums[r]));
}

// Dot products to scores: scale, soft-cap, ALiBi; what is not seen becomes -inf.
template <class Kv>
void finish_scores(const bst_attention_args& a, const Queries& q, const Split& s, int r, Visible seen, float* score) {
  for (int k = 0; k < s.width; k += kLanes) {
    Floats x = load(score + k) * set(a.scale);
    if constexpr (Kv::kScaled) x = x * load(s.key_scale + k);
    if (a.soft_cap > 0) x = set(a.soft_cap) * tanh(x / set(a.soft_cap));
    store(score + k, x);
  }
  if (a.alibi)
    for (int k = seen.begin; k < seen.end; ++k)
      score[k] += a.alibi[q.head[r]] * static_cast<float>(s.first + k - q.position[r]);
  for (int k = 0; k < seen.begin; ++k) score[k] = -INFINITY;
  for (int k = seen.end; k < s.width; ++k) score[k] = -INFINITY;
}

// Scores to weights, e^(score - largest); returns the largest, and their sum.
void weigh(float* score, int width, Visible seen, float& most, float& total) {
  Sixteen top = sixteen(-INFINITY), all = sixteen(0.0f);
  for (int k = 0; k < width; k += 16)
    for (int i = 0; i < Sixteen::kParts; ++i) top.part[i] = max(top.part[i], load(score + k + i * kLanes));
  most = largest(top);
  for (int k = 0; k < width; k += kLanes) store(score + k, exp(load(score + k) - set(most)));
  for (int k = 0; k < seen.begin; ++k) score[k] = 0.0f;
  for (int k = seen.end; k < width; ++k) score[k] = 0.0f;
  for (int k = 0; k < width; k += 16)
    for (int i = 0; i < Sixteen::kParts; ++i) all.part[i] = all.part[i] + load(score + k + i * kLanes);
  total = sum(all);
}

// out[r] += Σ weight[r][k] * value[k] for keys begin … end - 1, in order; kStep channels at a time.
template <class Kv, int kRows, int kStep>
void add_values(const Split& s, int channels, int begin, int end, const float (*weight)[kSplit], float* out) {
  constexpr int kParts = kStep / kLanes;
  for (int c = 0; c < channels; c += kStep) {
    Floats sum[kRows][kParts];
    for (int r = 0; r < kRows; ++r)
      for (int i = 0; i < kParts; ++i) sum[r][i] = load(out + r * channels + c + i * kLanes);
    for (int k = begin; k < end; ++k) {
      const char* value = s.key[k] + s.to_value;
      Floats x[kParts];
#pragma GCC unroll 4
      for (int i = 0; i < kParts; ++i) x[i] = Kv::get(value, c + i * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Floats factor = set(weight[r][k]);
#pragma GCC unroll 4
        for (int i = 0; i < kParts; ++i) sum[r][i] = fma(factor, x[i], sum[r][i]);
      }
    }
    for (int r = 0; r < kRows; ++r)
      for (int i = 0; i < kParts; ++i) store(out + r * channels + c + i * kLanes, sum[r][i]);
  }
}

template <class Kv, int kRows>
void add_values(const Split& s, int channels, int begin, int end, const float (*weight)[kSplit], float* out) {
  if (begin >= end) return;
  constexpr int kWide = 64;  // channels whose sums fit 32 registers, with kTogether queries
  if (kLanes == 16 && channels % kWide == 0) add_values<Kv, kRows, kWide>(s, channels, begin, end, weight, out);
  else add_values<Kv, kRows, 16>(s, channels, begin, end, weight, out);
}

// Queries together over what all of them see; what only some see is added for each alone, so that a key that a query
// does not see has no part in it, not even by 0 * NaN.
template <class Kv, int kRows>
void values_of(const Split& s, int channels, const Visible* seen, const float (*weight)[kSplit], float* out) {
  int begin = 0, end = kSplit;
  for (int r = 0; r < kRows; ++r) {
    begin = seen[r].begin > begin ? seen[r].begin : begin;
    end = seen[r].end < end ? seen[r].end : end;
  }
  if (begin > end) begin = end = 0;  // nothing in common: all of it alone, after the common part
  for (int r = 0; r < kRows; ++r)
    add_values<Kv, 1>(s, channels, seen[r].begin, begin, weight + r, out + r * channels);
  add_values<Kv, kRows>(s, channels, begin, end, weight, out);
  for (int r = 0; r < kRows; ++r)
    add_values<Kv, 1>(s, channels, end > seen[r].begin ? end : seen[r].begin, seen[r].end, weight + r, out + r * channels);
}

// f(first query, integral constant of how many) for all queries, kTogether at a time.
template <class F>
void by_groups(int count, F f) {
  int r = 0;
  for (; r + kTogether <= count; r += kTogether) f(r, std::integral_constant<int, kTogether>());
  switch (count - r) {
    case 1: return f(r, std::integral_constant<int, 1>());
    case 2: return f(r, std::integral_constant<int, 2>());
    case 3: return f(r, std::integral_constant<int, 3>());
  }
}

template <class Kv>
void one_split(const bst_attention_args& a, const Queries& q, int64_t first, Partial& found) {
  Split s;
  alignas(64) float score[kMostQueries][kSplit];
  Visible seen[kMostQueries];
  const int64_t left = q.last_position() + 1 - first;
  const int count = static_cast<int>(left < kSplit ? left : kSplit);
  find_keys<Kv>(a, q, first, count, s);
  for (int k = count; k < s.width; ++k) s.key_scale[k] = 0.0f;
  for (int r = 0; r < q.count; ++r)
    for (int k = 0; k < s.width; k += kLanes) store(score[r] + k, set(0.0f));
  constexpr int kAhead = 32;  // keys
  const int64_t bytes = int64_t{a.head_size} * Kv::kBytes;
  for (int k = 0; k < kAhead; k += kLanes) fetch(s, k, bytes);
  by_groups(q.count, [&](int r, auto rows) {
    for (int k = 0; k < count; k += kLanes) {
      if (r == 0) fetch(s, k + kAhead, bytes);
      dot_products<Kv, decltype(rows)::value>(s, a.head_size, k, q.row + r, score + r);
    }
  });
  for (int r = 0; r < q.count; ++r) {
    const int64_t begin = a.window > 0 ? q.position[r] + 1 - a.window - first : 0, end = q.position[r] + 1 - first;
    seen[r].end = static_cast<int>(end < 0 ? 0 : end < count ? end : count);
    seen[r].begin = static_cast<int>(begin < 0 ? 0 : begin < seen[r].end ? begin : seen[r].end);
    finish_scores<Kv>(a, q, s, r, seen[r], score[r]);
    weigh(score[r], s.width, seen[r], found.most[r], found.total[r]);
    if constexpr (Kv::kScaled)
      for (int k = seen[r].begin; k < seen[r].end; ++k) score[r][k] *= s.value_scale[k];
  }
  std::memset(found.out, 0, sizeof(float) * static_cast<size_t>(q.count * a.head_size));
  by_groups(q.count, [&](int r, auto rows) {
    values_of<Kv, decltype(rows)::value>(s, a.head_size, seen + r, score + r, found.out + r * a.head_size);
  });
}

}  // namespace

void attend_split(const bst_attention_args& a, const Queries& q, int64_t split, Partial& found) {
  switch (a.kv_type) {
    case BST_KV_F32: return one_split<KvF32>(a, q, split * kSplit, found);
    case BST_KV_F16: return one_split<KvF16>(a, q, split * kSplit, found);
    case BST_KV_BF16: return one_split<KvBF16>(a, q, split * kSplit, found);
    case BST_KV_INT8: return one_split<KvInt8>(a, q, split * kSplit, found);
    default: return;
  }
}

}  // namespace bst
