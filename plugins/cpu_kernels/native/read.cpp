// Reading memory and nothing else: the limit that single-row products are measured against.
#include "bestiary_cpu.h"
#include "records.h"
#include "vec.h"

using namespace bst;

BST_API void bst_read(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_read_args*>(args);
  constexpr int64_t kStep = 4 * kLanes;
  const Range mine = share(a.count / kStep, part, parts);
  Floats sum[4] = {set(0.0f), set(0.0f), set(0.0f), set(0.0f)};
  for (int64_t i = mine.begin; i < mine.end; ++i)
    for (int k = 0; k < 4; ++k) sum[k] = sum[k] + load(a.data + i * kStep + k * kLanes);
  float lane[kLanes], total = 0;
  store(lane, (sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (int i = 0; i < kLanes; ++i) total += lane[i];
  a.sums[part] = total;
}
