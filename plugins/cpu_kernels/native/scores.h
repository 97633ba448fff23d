// Dot products of a split's keys with queries.
//
// Channel c is summed in lane c % 16, and the sixteen sums are added as `Sixteen` adds them, in one of two ways: with a
// lane for each channel, which reads keys as they lie, or, for many queries, with a lane for each key, which turns keys
// first and then has nothing to add across lanes. Both give the same bits.
#pragma once
#include <type_traits>

#include "attention.h"

namespace bst {

// One split's keys.
struct Split {
  int64_t first;             // position of the first key
  int count, width;          // as many as any query sees; rounded up to 16
  const char* key[kSplit];   // rows of the cache; a value lies `to_value` bytes behind its key
  int64_t to_value;
  float key_scale[kSplit], value_scale[kSplit];  // int8 caches
};

// Keys and values of one head lie a whole token apart, too far for the processor to see a stream in them.
inline void fetch(const Split& s, int first, int64_t bytes) {
  for (int k = first; k < first + kLanes && k < s.count; ++k)
    for (int64_t at = 0; at < bytes; at += 64) {
      __builtin_prefetch(s.key[k] + at);
      __builtin_prefetch(s.key[k] + s.to_value + at, 0, 2);
    }
}

constexpr int kTogether = 4;  // queries whose sums are in registers at once

// score[r][first + k] = q[r] · key[first + k] for kLanes keys. kChannels: how many there are, 0 where only `channels`
// says it.
template <class Kv, int kRows, int kChannels>
BST_ALL_INLINE void dot_products(const Split& s, int channels, int first, const float* const* row,
                                 float (*score)[kSplit]) {
  Floats sum[kRows];
  sum_lanes<kRows>([&](int k, Floats (&lanes)[kRows]) {
    const char* key = s.key[first + k < s.count ? first + k : 0];
    Sixteen all[kRows];
    for (int r = 0; r < kRows; ++r) all[r] = sixteen(0.0f);
#pragma GCC unroll 8
    for (int c = 0; c < (kChannels ? kChannels : channels); c += 16) {
#pragma GCC unroll 2
      for (int i = 0; i < Sixteen::kParts; ++i) {
        const Floats x = Kv::get(key, c + i * kLanes);
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) all[r].part[i] = fma(load(row[r] + c + i * kLanes), x, all[r].part[i]);
      }
    }
    for (int r = 0; r < kRows; ++r) lanes[r] = lanes_of(all[r]);
  }, sum);
  for (int r = 0; r < kRows; ++r) store(score[r] + first, sum[r]);
}

// Keys first … first + kLanes - 1 as [channel][key].
template <class Kv>
void turn_keys(const Split& s, int channels, int first, float* turned) {
  for (int c = 0; c < channels; c += kLanes) {
    Floats x[kLanes];
#pragma GCC unroll 16
    for (int k = 0; k < kLanes; ++k) x[k] = Kv::get(s.key[first + k < s.count ? first + k : 0], c);
    transpose(x);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(turned + (c + i) * kLanes, x[i]);
  }
}

// The sums of lanes lane, lane + kStep, lane + 2 kStep, …, added in the order of `fold`.
template <int kRows, int kStep>
inline void add_lanes(const float* turned, int channels, int lane, const float* const* row, Floats (&sum)[kRows]) {
  if constexpr (kStep == 16) {
    for (int r = 0; r < kRows; ++r) sum[r] = set(0.0f);
    for (int c = lane; c < channels; c += 16) {
      const Floats x = load(turned + c * kLanes);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sum[r] = fma(set(row[r][c]), x, sum[r]);
    }
  } else {
    Floats other[kRows];
    add_lanes<kRows, 2 * kStep>(turned, channels, lane, row, sum);
    add_lanes<kRows, 2 * kStep>(turned, channels, lane + kStep, row, other);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) sum[r] = sum[r] + other[r];
  }
}

// As dot_products, of keys that are turned.
template <int kRows>
BST_ALL_INLINE void dot_turned(const float* turned, int channels, int first, const float* const* row,
                               float (*score)[kSplit]) {
  Floats sum[kRows];
  add_lanes<kRows, 1>(turned, channels, 0, row, sum);
  for (int r = 0; r < kRows; ++r) store(score[r] + first, sum[r]);
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

constexpr int kAhead = 32;  // keys that are asked for before they are needed
constexpr int kMany = 8;    // queries for which it pays to turn keys

// score[r][k] = q[r] · key[k] for all queries and keys.
template <class Kv>
void all_dot_products(const Split& s, const Queries& q, int channels, float (*score)[kSplit]) {
  alignas(64) float turned[kMostChannels * kLanes];
  const int64_t bytes = int64_t{channels} * Kv::kBytes;
  for (int k = 0; k < kAhead; k += kLanes) fetch(s, k, bytes);
  for (int k = 0; k < s.width; k += kLanes) {
    fetch(s, k + kAhead, bytes);
    if (q.count >= kMany) turn_keys<Kv>(s, channels, k, turned);
    by_groups(q.count, [&](int r, auto rows) {
      constexpr int kRows = decltype(rows)::value;
      if (q.count >= kMany) dot_turned<kRows>(turned, channels, k, q.row + r, score + r);
      else if (channels == 64) dot_products<Kv, kRows, 64>(s, channels, k, q.row + r, score + r);
      else if (channels == 128) dot_products<Kv, kRows, 128>(s, channels, k, q.row + r, score + r);
      else dot_products<Kv, kRows, 0>(s, channels, k, q.row + r, score + r);
    });
  }
}

}  // namespace bst
