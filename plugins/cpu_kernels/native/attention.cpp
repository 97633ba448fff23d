// Attention over the paged cache: decode and prefill are the same code.
//
// Keys are taken in splits of kSplit positions, counted from position 0. A split's softmax stands by itself (largest
// score, sum, weighted values), and splits are joined in order; so a query's result depends on its own keys alone,
// whatever else is in the batch, and whether one thread walked its splits or several.
//
// Queries that read the same keys are taken together: the heads of a group (GQA), and neighbouring tokens.
#include "attention.h"
#include "math.h"
#include "scores.h"

namespace bst {
namespace {

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

// What stands between dot products and scores beside the scale: a cache's scales, soft-cap, ALiBi. Returns the scale that
// is still to be applied.
template <class Kv>
float change_scores(const bst_attention_args& a, const Queries& q, const Split& s, int r, Visible seen, float* score) {
  if (!Kv::kScaled && a.soft_cap <= 0 && !a.alibi) return a.scale;
  for (int k = 0; k < s.width; k += kLanes) {
    Floats x = load(score + k) * set(a.scale);
    if constexpr (Kv::kScaled) x = x * load(s.key_scale + k);
    if (a.soft_cap > 0) x = set(a.soft_cap) * tanh(x / set(a.soft_cap));
    store(score + k, x);
  }
  if (a.alibi)
    for (int k = seen.begin; k < seen.end; ++k)
      score[k] += a.alibi[q.head[r]] * static_cast<float>(s.first + k - q.position[r]);
  return 1.0f;
}

// Scores to weights, e^(scale * score - largest), of the keys that are seen; the largest, and the weights' sum.
void weigh(float* score, float scale, Visible seen, float& most, float& total) {
  Sixteen top = sixteen(-INFINITY), all = sixteen(0.0f);
  const int from = seen.begin / 16 * 16, to = (seen.end + 15) / 16 * 16;
  const auto outside = [&](float x) {
    for (int k = from; k < seen.begin; ++k) score[k] = x;
    for (int k = seen.end; k < to; ++k) score[k] = x;
  };
  outside(scale < 0 ? INFINITY : -INFINITY);
  for (int k = from; k < to; k += 16)
    for (int i = 0; i < Sixteen::kParts; ++i)
      top.part[i] = max(top.part[i], load(score + k + i * kLanes) * set(scale));
  most = largest(top);
  for (int k = from; k < to; k += kLanes) store(score + k, exp(load(score + k) * set(scale) - set(most)));
  outside(0.0f);
  for (int k = from; k < to; k += 16)
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

// out[r] += Σ weight[r][k] * value[k] over the keys that a query sees. Queries go together over what all of a group see;
// what only some see is added for each alone, so that nothing else has a part in it, not even by 0 * NaN.
template <class Kv>
void all_values(const Split& s, int channels, int count, const Visible* seen, const float (*weight)[kSplit],
                float* out) {
  constexpr int kNear = 32;  // keys whose values stay in the first cache while groups of queries take turns
  const auto alone = [&](int r, int begin, int end) {
    add_values<Kv, 1>(s, channels, begin, end, weight + r, out + r * channels);
  };
  Visible common[kMostQueries];  // of a group, by its first query
  by_groups(count, [&](int first, auto rows) {
    Visible all = seen[first];
    for (int r = first + 1; r < first + rows; ++r) {
      all.begin = seen[r].begin > all.begin ? seen[r].begin : all.begin;
      all.end = seen[r].end < all.end ? seen[r].end : all.end;
    }
    if (all.begin > all.end) all.begin = all.end = 0;  // nothing in common: all of it alone, after the common part
    for (int r = first; r < first + rows; ++r) alone(r, seen[r].begin, all.begin);
    common[first] = all;
  });
  const int step = count > kTogether ? kNear : kSplit;
  for (int k = 0; k < s.count; k += step)
    by_groups(count, [&](int r, auto rows) {
      const int begin = k > common[r].begin ? k : common[r].begin;
      const int end = k + step < common[r].end ? k + step : common[r].end;
      add_values<Kv, decltype(rows)::value>(s, channels, begin, end, weight + r, out + r * channels);
    });
  by_groups(count, [&](int first, auto rows) {
    for (int r = first; r < first + rows; ++r) {
      const int end = common[first].end;
      alone(r, end > seen[r].begin ? end : seen[r].begin, seen[r].end);
    }
  });
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
  all_dot_products<Kv>(s, q, a.head_size, score);
  for (int r = 0; r < q.count; ++r) {
    const int64_t begin = a.window > 0 ? q.position[r] + 1 - a.window - first : 0, end = q.position[r] + 1 - first;
    seen[r].end = static_cast<int>(end < 0 ? 0 : end < count ? end : count);
    seen[r].begin = static_cast<int>(begin < 0 ? 0 : begin < seen[r].end ? begin : seen[r].end);
    const float scale = change_scores<Kv>(a, q, s, r, seen[r], score[r]);
    weigh(score[r], scale, seen[r], found.most[r], found.total[r]);
    if constexpr (Kv::kScaled)
      for (int k = seen[r].begin; k < seen[r].end; ++k) score[r][k] *= s.value_scale[k];
  }
  std::memset(found.out, 0, sizeof(float) * static_cast<size_t>(q.count * a.head_size));
  all_values<Kv>(s, a.head_size, q.count, seen, score, found.out);
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
