// Who computes which queries and splits of attention, and how splits are joined.
#include "attention.h"
#include "math.h"
#include "quantize.h"

using namespace bst;

namespace {

// How queries are taken together: `heads` of a group, `tokens` neighbours.
struct Shape {
  int group, heads, chunks, tokens;

  explicit Shape(const bst_attention_args& a) {
    group = a.heads / a.kv_heads;
    heads = group < kMostQueries ? group : kMostQueries;
    chunks = (group + heads - 1) / heads;
    tokens = kMostQueries / heads;
  }
};

Queries queries_at(const bst_attention_args& a, const Shape& shape, int64_t sequence, int64_t tile, int pack) {
  const int kv_head = pack / shape.chunks, chunk = pack % shape.chunks;
  Queries q;
  q.sequence = sequence, q.kv_head = kv_head, q.count = 0;
  const int64_t start = a.query_start[sequence], length = a.query_start[sequence + 1] - start;
  const int64_t context = a.seq_lens[sequence] - length;
  for (int64_t t = tile * shape.tokens; t < length && t < (tile + 1) * shape.tokens; ++t)
    for (int h = chunk * shape.heads; h < shape.group && h < (chunk + 1) * shape.heads; ++h) {
      const int head = kv_head * shape.group + h;
      q.row[q.count] = a.query + (start + t) * a.query_stride + int64_t{head} * a.head_size;
      q.token[q.count] = start + t;
      q.position[q.count] = context + t;
      q.head[q.count++] = head;
    }
  return q;
}

Range splits_of(const bst_attention_args& a, const Queries& q) {
  const int64_t begin = a.window > 0 ? q.first_position() + 1 - a.window : 0;
  return {begin > 0 ? begin / kSplit : 0, q.last_position() / kSplit + 1};
}

float exp_of(float x) {
  float lane[kLanes];
  store(lane, exp(set(x)));
  return x > -87.0f ? lane[0] : x == x ? 0.0f : x;
}

// One query's sums: those of later keys joined to those of earlier ones.
void join(float& most, float& total, float* out, float next_most, float next_total, const float* next, int channels) {
  if (next_total == 0.0f) return;  // saw no key
  const float top = most > next_most ? most : next_most;
  const float keep = total == 0.0f ? 0.0f : exp_of(most - top), take = exp_of(next_most - top);
  total = total * keep + next_total * take;
  for (int c = 0; c < channels; c += kLanes) store(out + c, load(out + c) * set(keep) + load(next + c) * set(take));
  most = top;
}

void write(const bst_attention_args& a, int64_t token, int head, float most, float total, const float* sums) {
  alignas(64) float y[kMostChannels];
  float factor = 1.0f;
  if (a.sinks) {  // one more logit, whose share goes nowhere
    const float top = most > a.sinks[head] ? most : a.sinks[head];
    factor = exp_of(most - top);
    total = total * factor + exp_of(a.sinks[head] - top);
  }
  for (int c = 0; c < a.head_size; ++c) y[c] = sums[c] * factor / total;
  const int64_t column = int64_t{head} * a.head_size;
  if (a.out) std::memcpy(a.out + token * a.out_stride + column, y, sizeof(float) * static_cast<size_t>(a.head_size));
  if (!a.prepared) return;
  for (int c = 0; c < a.head_size; c += kBlock)
    put_block(a.quantized, a.prepared, tile_at(token / kTile, a.rows), int64_t{a.heads} * a.head_size, token,
              (column + c) / kBlock, y + c);
}

void whole(const bst_attention_args& a, const Queries& q) {
  Partial sums, next;
  const Range splits = splits_of(a, q);
  attend_split(a, q, splits.begin, sums);
  for (int64_t s = splits.begin + 1; s < splits.end; ++s) {
    attend_split(a, q, s, next);
    for (int r = 0; r < q.count; ++r)
      join(sums.most[r], sums.total[r], sums.out + r * a.head_size, next.most[r], next.total[r],
           next.out + r * a.head_size, a.head_size);
  }
  for (int r = 0; r < q.count; ++r)
    write(a, q.token[r], q.head[r], sums.most[r], sums.total[r], sums.out + r * a.head_size);
}

// The place of a split's sums: largest, total, values.
float* kept(const bst_attention_args& a, int64_t token, int head, int64_t split) {
  return a.partial + ((token * a.heads + head) * a.most_splits + split) * (a.head_size + 2);
}

void part_of(const bst_attention_args& a, const Queries& q, int64_t split) {
  Partial sums;
  attend_split(a, q, split, sums);
  for (int r = 0; r < q.count; ++r) {
    float* to = kept(a, q.token[r], q.head[r], split);
    to[0] = sums.most[r], to[1] = sums.total[r];
    std::memcpy(to + 2, sums.out + r * a.head_size, sizeof(float) * static_cast<size_t>(a.head_size));
  }
}

}  // namespace

BST_API int bst_attention_split(void) { return kSplit; }

// Work goes round: what one part has, the next has of the following queries, whose lengths are much the same.
BST_API void bst_attention(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_attention_args*>(args);
  const Shape shape(a);
  int64_t turn = 0;
  for (int64_t sequence = 0; sequence < a.sequences; ++sequence) {
    const int64_t length = a.query_start[sequence + 1] - a.query_start[sequence];
    for (int64_t tile = 0; tile * shape.tokens < length; ++tile)
      for (int i = 0; i < a.kv_heads * shape.chunks; ++i) {
        if (!a.partial && turn++ % parts != part) continue;
        const Queries q = queries_at(a, shape, sequence, tile, i);
        if (!a.partial) {
          whole(a, q);
          continue;
        }
        const Range splits = splits_of(a, q);
        for (int64_t s = splits.begin; s < splits.end; ++s)
          if (turn++ % parts == part) part_of(a, q, s);
      }
  }
}

BST_API void bst_attention_join(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_attention_args*>(args);
  const Shape shape(a);
  int64_t turn = 0;
  for (int64_t sequence = 0; sequence < a.sequences; ++sequence) {
    const int64_t length = a.query_start[sequence + 1] - a.query_start[sequence];
    for (int64_t tile = 0; tile * shape.tokens < length; ++tile)
      for (int i = 0; i < a.kv_heads * shape.chunks; ++i) {
        if (turn++ % parts != part) continue;
        const Queries q = queries_at(a, shape, sequence, tile, i);
        const Range splits = splits_of(a, q);
        for (int r = 0; r < q.count; ++r) {
          float* sums = kept(a, q.token[r], q.head[r], splits.begin);
          for (int64_t s = splits.begin + 1; s < splits.end; ++s) {
            const float* next = kept(a, q.token[r], q.head[r], s);
            join(sums[0], sums[1], sums + 2, next[0], next[1], next + 2, a.head_size);
          }
          write(a, q.token[r], q.head[r], sums[0], sums[1], sums + 2);
        }
      }
  }
}
