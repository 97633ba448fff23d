// Which experts a token goes to.
#include <limits>

#include "bestiary_cpu.h"
#include "math.h"
#include "records.h"

using namespace bst;

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// What is chosen by: NaN is above all.
float key_of(float x) { return x == x ? x : kInfinity; }

// The next best after `last`: the order is by value, largest first, and among equals by place. -1: none is left.
int next_best(const float* x, int count, int last) {
  int best = -1;
  for (int i = 0; i < count; ++i) {
    const bool after = last < 0 || key_of(x[i]) < key_of(x[last]) || (key_of(x[i]) == key_of(x[last]) && i > last);
    if (after && (best < 0 || key_of(x[i]) > key_of(x[best]))) best = i;
  }
  return best;
}

void score(const bst_topk_args& a, const float* logits, float* scores) {
  float most = -kInfinity, sum = 0;
  for (int i = 0; i < a.experts; ++i) most = logits[i] <= most ? most : logits[i];
  for (int first = 0; first < a.experts; first += kLanes) {
    const int left = a.experts - first, count = left < kLanes ? left : kLanes;
    float x[kLanes] = {};
    std::memcpy(x, logits + first, sizeof(float) * static_cast<size_t>(count));
    store(x, a.scoring == BST_SIGMOID ? sigmoid(load(x)) : exp(load(x) - set(most)));
    std::memcpy(scores + first, x, sizeof(float) * static_cast<size_t>(count));
  }
  if (a.scoring == BST_SIGMOID) return;
  for (int i = 0; i < a.experts; ++i) sum += scores[i];
  for (int i = 0; i < a.experts; ++i) scores[i] /= sum;
}

// Experts outside the best groups cannot be chosen any more.
void keep_best_groups(const bst_topk_args& a, float* choice) {
  float worth[BST_MOST_EXPERTS];
  bool kept[BST_MOST_EXPERTS] = {};
  const int size = a.experts / a.groups;
  for (int g = 0; g < a.groups; ++g) {
    const float* group = choice + g * size;
    const int best = next_best(group, size, -1), second = a.bias ? next_best(group, size, best) : -1;
    worth[g] = second < 0 ? group[best] : group[best] + group[second];
  }
  for (int i = 0, g = -1; i < a.kept_groups; ++i) kept[g = next_best(worth, a.groups, g)] = true;
  for (int i = 0; i < a.experts; ++i)
    if (!kept[i / size]) choice[i] = -kInfinity;
}

void one_token(const bst_topk_args& a, const float* logits, float* weights, int64_t* ids) {
  float scores[BST_MOST_EXPERTS], choice[BST_MOST_EXPERTS], sum = 0;
  score(a, logits, scores);
  for (int i = 0; i < a.experts; ++i) choice[i] = a.bias ? scores[i] + a.bias[i] : scores[i];
  if (a.groups > 0) keep_best_groups(a, choice);
  for (int j = 0, best = -1; j < a.k; ++j) {
    best = next_best(choice, a.experts, best);
    ids[j] = best;
    weights[j] = scores[best];
    sum += weights[j];
  }
  if (!a.renormalize) return;
  constexpr float kLeast = std::numeric_limits<float>::min();
  for (int j = 0; j < a.k; ++j) weights[j] /= sum < kLeast ? kLeast : sum;
}

}  // namespace

BST_API void bst_topk(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_topk_args*>(args);
  const Range mine = share(a.tokens, part, parts);
  for (int64_t t = mine.begin; t < mine.end; ++t)
    one_token(a, a.logits + t * a.logits_stride, a.weights + t * a.k, a.ids + t * a.k);
}
