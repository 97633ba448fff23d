// Activation functions, gated or not, their result prepared for the next product.
#include "bestiary_cpu.h"
#include "math.h"
#include "quantize.h"

using namespace bst;

namespace {

Floats activate(int function, Floats x) {
  switch (function) {
    case BST_SILU: return x * sigmoid(x);
    case BST_GELU: return set(0.5f) * x * (set(1.0f) + erf(x * set(0.707106781f)));
    case BST_GELU_TANH: {  // x/2 (1 + tanh u) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x³)
      const Floats u = set(0.797884561f) * (x + set(0.044715f) * x * x * x);
      return x * sigmoid(u + u);
    }
    case BST_QUICK_GELU: return x * sigmoid(set(1.702f) * x);
    case BST_RELU2: {
      const Floats y = max(set(0.0f), x);
      return y * y;
    }
    default: return x;
  }
}

void one_block(const bst_activation_args& a, Tile tile, int64_t row, int64_t first, int count) {
  alignas(64) float y[kBlock] = {};
  const float* gate = a.x + row * a.x_stride + first;
  std::memcpy(y, gate, sizeof(float) * static_cast<size_t>(count));
  for (int i = 0; i < kBlock; i += kLanes) store(y + i, activate(a.function, load(y + i)));
  if (a.gated)
    for (int i = 0; i < count; ++i) y[i] *= gate[a.n + i];
  if (a.out) std::memcpy(a.out + row * a.out_stride + first, y, sizeof(float) * static_cast<size_t>(count));
  if (a.prepared) put_block(a.quantized, a.prepared, tile, a.n, row, first / kBlock, y);
}

}  // namespace

BST_API void bst_activation(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_activation_args*>(args);
  const int64_t blocks = (a.n + kBlock - 1) / kBlock;
  const Range mine = share(a.rows * blocks, part, parts);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t first = i % blocks * kBlock, left = a.n - first;
    const Tile tile = tile_of(a.tiles, i / blocks, a.rows);
    if (tile.rows > 0) one_block(a, tile, i / blocks, first, static_cast<int>(left < kBlock ? left : kBlock));
  }
}
