// The largest logit of each row: the first of equals; NaN, if there is one, counts as the largest, as in torch.
#include "bestiary_cpu.h"
#include "records.h"

using namespace bst;

BST_API void bst_argmax(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_argmax_args*>(args);
  const Range mine = share(a.rows, part, parts);
  for (int64_t row = mine.begin; row < mine.end; ++row) {
    const float* x = a.x + row * a.x_stride;
    int64_t best = 0;
    for (int64_t k = 1; k < a.n && x[best] == x[best]; ++k)
      if (!(x[k] <= x[best])) best = k;
    a.ids[row] = best;
  }
}
