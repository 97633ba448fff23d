// Low-rank adapters: every row with the two factors of its own slot, in fp32.
//
// All dot products are summed in sixteen lanes: of columns in the first factor, of the rank in the second.
#include "bestiary_cpu.h"
#include "floats.h"
#include "records.h"
#include "weights.h"

using namespace bst;

namespace {

constexpr int kTogether = 4;  // rows of A that meet x at once

// How much of the rank a row uses; 0 for one without an adapter.
int rank_of(const bst_lora_args& a, int64_t row) {
  const int64_t slot = a.slot_of[row];
  return slot >= 0 && slot < a.slots ? a.ranks[slot] : 0;
}

// sum += x · y over n numbers.
template <class F>
void add_dot(const typename F::T* x, const float* y, int64_t n, Sixteen& sum) {
  int64_t k = 0;
  for (; k + 16 <= n; k += 16)
#pragma GCC unroll 2
    for (int i = 0; i < Sixteen::kParts; ++i)
      sum.part[i] = fma(F::get(x + k + i * kLanes), load(y + k + i * kLanes), sum.part[i]);
  for (int i = 0; i < Sixteen::kParts && k < n; ++i, k += kLanes) {
    const int left = static_cast<int>(n - k);
    if (left >= kLanes) sum.part[i] = fma(F::get(x + k), load(y + k), sum.part[i]);
    else sum.part[i] = fma(F::get(x + k, left), load(y + k, left), sum.part[i]);
  }
}

template <class F, int kCount>
void dots_of(const typename F::T* w, int64_t stride, const float* x, int64_t n, float* out) {
  Sixteen sum[kCount];
  for (auto& each : sum) each = sixteen(0.0f);
  const int64_t whole = n / 16 * 16;
  for (int64_t k = 0; k < whole; k += 16)
#pragma GCC unroll 2
    for (int i = 0; i < Sixteen::kParts; ++i) {
      const Floats y = load(x + k + i * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kCount; ++r)
        sum[r].part[i] = fma(F::get(w + r * stride + k + i * kLanes), y, sum[r].part[i]);
    }
  for (int r = 0; r < kCount; ++r) {
    add_dot<F>(w + r * stride + whole, x + whole, n - whole, sum[r]);
    out[r] = bst::sum(sum[r]);
  }
}

// `count` numbers of a row's A x.
template <class F>
void shrink(const bst_lora_args& a, int64_t row, int64_t shard, int first, int count) {
  const auto* w = static_cast<const typename F::T*>(a.a);
  float* out = a.inner + (row * a.shards + shard) * a.rank + first;
  if (a.ids) {
    w += (a.slot_of[row] * a.n_in + a.ids[row]) * a.rank + first;
    for (int r = 0; r < count; ++r) {
      float x[kLanes];
      store(x, F::get(w + r, 1));
      out[r] = x[0];
    }
    return;
  }
  w += ((a.slot_of[row] * a.shards + shard) * a.rank + first) * a.n_in;
  const float* x = a.x + row * a.x_stride;
  if (count == kTogether) return dots_of<F, kTogether>(w, a.n_in, x, a.n_in, out);
  for (int r = 0; r < count; ++r) dots_of<F, 1>(w + r * a.n_in, a.n_in, x, a.n_in, out + r);
}

// `count` ≤ kLanes neighbouring outputs of one shard.
template <class F>
void expand(const bst_lora_args& a, int64_t row, int rank, int64_t shard, int64_t first, int count) {
  const int64_t outputs = a.ends[a.shards - 1];
  const auto* w = static_cast<const typename F::T*>(a.b) + (a.slot_of[row] * outputs + first) * a.rank;
  const float* inner = a.inner + (row * a.shards + shard) * a.rank;
  Floats sum[1];
  sum_lanes<1>([&](int i, Floats (&lanes)[1]) {
    Sixteen all = sixteen(0.0f);
    if (i < count) add_dot<F>(w + i * a.rank, inner, rank, all);
    lanes[0] = lanes_of(all);
  }, sum);
  float found[kLanes];
  store(found, sum[0]);
  float* out = a.out + row * a.out_stride + first;
  for (int i = 0; i < count; ++i) out[i] += found[i];
}

// Work goes round, so that all threads have some of every row: one row's share is as small as the rank allows.
template <class F>
void shrink_part(const bst_lora_args& a, int part, int parts) {
  int64_t turn = 0;
  for (int64_t row = 0; row < a.rows; ++row) {
    const int rank = rank_of(a, row);
    for (int64_t shard = 0; shard < a.shards; ++shard)
      for (int first = 0; first < rank; first += kTogether)
        if (turn++ % parts == part) shrink<F>(a, row, shard, first, rank - first < kTogether ? rank - first : kTogether);
  }
}

// A part has the same outputs of every row, whose factors then stay in its cache.
template <class F>
void expand_part(const bst_lora_args& a, int part, int parts) {
  for (int64_t row = 0; row < a.rows; ++row) {
    const int rank = rank_of(a, row);
    for (int64_t shard = 0; shard < a.shards && rank > 0; ++shard) {
      const int64_t begin = shard ? a.ends[shard - 1] : 0, size = a.ends[shard] - begin;
      const Range mine = share(panels_of(size), part, parts);
      for (int64_t p = mine.begin; p < mine.end; ++p) {
        const int64_t left = size - p * kLanes;
        expand<F>(a, row, rank, shard, begin + p * kLanes, static_cast<int>(left < kLanes ? left : kLanes));
      }
    }
  }
}

}  // namespace

BST_API void bst_lora_shrink(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_lora_args*>(args);
  switch (a.format) {
    case kF32: return shrink_part<F32>(a, part, parts);
    case kF16: return shrink_part<F16>(a, part, parts);
    case kBF16: return shrink_part<BF16>(a, part, parts);
  }
}

BST_API void bst_lora_expand(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_lora_args*>(args);
  switch (a.format) {
    case kF32: return expand_part<F32>(a, part, parts);
    case kF16: return expand_part<F16>(a, part, parts);
    case kBF16: return expand_part<BF16>(a, part, parts);
  }
}
