// The largest logit of each row and where it is: the first of equals; NaN, if there is one, counts as the largest, as in
// torch.
#include "bestiary_cpu.h"
#include "records.h"
#include "vec.h"

using namespace bst;

namespace {

constexpr int64_t kChunk = 1024;  // columns that are looked through again for the place

// The first NaN, or the first of the largest.
int64_t one_by_one(const float* x, int64_t begin, int64_t end) {
  int64_t best = begin;
  for (int64_t k = begin + 1; k < end && x[best] == x[best]; ++k)
    if (!(x[k] <= x[best])) best = k;
  return best;
}

// A chunk's largest number, if all are finite.
bool finite_most(const float* x, float& most) {
  Floats top = load(x), rest = top * set(0.0f);
  for (int64_t k = kLanes; k < kChunk; k += kLanes) {
    const Floats next = load(x + k);
    top = max(top, next);
    rest = fma(next, set(0.0f), rest);
  }
  float tops[kLanes], rests[kLanes];
  store(tops, top), store(rests, rest);
  most = tops[0];
  float flaw = 0.0f;
  for (int i = 0; i < kLanes; ++i) most = tops[i] > most ? tops[i] : most, flaw += rests[i];
  return flaw == 0.0f;
}

int64_t largest(const float* x, int64_t n) {
  int64_t best = -1, k = 0;
  for (; k + kChunk <= n; k += kChunk) {
    float most;
    if (!finite_most(x + k, most)) return one_by_one(x, 0, n);
    if (best < 0 || most > x[best]) best = one_by_one(x + k, 0, kChunk) + k;
  }
  if (k == n) return best;
  const int64_t last = one_by_one(x, k, n);
  return best < 0 || !(x[last] <= x[best]) ? last : best;
}

}  // namespace

BST_API void bst_argmax(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_argmax_args*>(args);
  const Range mine = share(a.rows, part, parts);
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    const float* x = a.x + row * a.x_stride;
    const int64_t best = largest(x, a.n);
    a.ids[row] = best;
    if (a.peaks) a.peaks[row] = x[best];
  }
}
