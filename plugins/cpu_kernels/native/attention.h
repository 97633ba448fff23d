#pragma once
#include <cmath>

#include "bestiary_cpu.h"
#include "cache.h"

namespace bst {

constexpr int kSplit = 256;        // keys
constexpr int kMostQueries = 16;   // rows of q that are taken together
constexpr int kMostChannels = BST_MOST_CHANNELS;

// Rows of q that read the same keys of one sequence: heads of one group of some neighbouring tokens.
struct Queries {
  int64_t sequence;
  int kv_head, count;
  const float* row[kMostQueries];
  int64_t token[kMostQueries], position[kMostQueries];
  int head[kMostQueries];

  int64_t first_position() const { return position[0]; }
  int64_t last_position() const { return position[count - 1]; }
};

// What one split contributes, or several that were joined.
struct Partial {
  float most[kMostQueries], total[kMostQueries];
  float out[kMostQueries * kMostChannels];  // [query][head_size]
};

// The split's largest score, sum of e^(score - largest), and the values weighted so, for each query.
// A query that sees no key of the split gets -inf, 0 and zeros.
void attend_split(const bst_attention_args& a, const Queries& q, int64_t split, Partial& found);

}  // namespace bst
