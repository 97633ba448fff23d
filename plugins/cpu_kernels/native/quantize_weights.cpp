// fp32 weights into GGUF blocks while loading: Q8_0 ("int8") and Q4_1 ("int4").
#include <cmath>

#include "bestiary_cpu.h"
#include "half.h"
#include "records.h"

using namespace bst;

namespace {

constexpr int kQ4_1 = 3, kQ8_0 = 8;

void put_half_at(uint8_t* to, float x) {
  const uint16_t half = float_to_half(x);
  std::memcpy(to, &half, 2);
}

int clamped(float x, int low, int high) {
  if (!(x > static_cast<float>(low))) return low;
  return x >= static_cast<float>(high) ? high : static_cast<int>(std::nearbyint(x));
}

// 0, or NaN where a weight is NaN or infinite: added to a scale, it keeps such a block from passing for numbers.
float unless_finite(const float* x) {
  float sum = 0;
  for (int i = 0; i < kBlock; ++i) sum += x[i] * 0;
  return sum;
}

void q8_0(const float* x, uint8_t* block) {
  float size = 0;
  for (int i = 0; i < kBlock; ++i) size = std::fabs(x[i]) > size ? std::fabs(x[i]) : size;
  put_half_at(block, size / 127 + unless_finite(x));
  uint16_t half;
  std::memcpy(&half, block, 2);
  const float scale = half_to_float(half), factor = scale > 0 ? 1 / scale : 0;  // of the scale that is stored
  for (int i = 0; i < kBlock; ++i) block[2 + i] = static_cast<uint8_t>(clamped(x[i] * factor, -127, 127));
}

// Steps of equal width from the smallest to the largest weight. Scale and minimum are rounded to half first, and the
// codes chosen for what is stored.
void q4_1(const float* x, uint8_t* block) {
  float low = x[0], high = x[0];
  for (int i = 1; i < kBlock; ++i) low = x[i] < low ? x[i] : low, high = x[i] > high ? x[i] : high;
  put_half_at(block, (high - low) / 15 + unless_finite(x));
  put_half_at(block + 2, low);
  uint16_t halves[2];
  std::memcpy(halves, block, 4);
  const float scale = half_to_float(halves[0]), minimum = half_to_float(halves[1]), factor = scale > 0 ? 1 / scale : 0;
  for (int i = 0; i < 16; ++i) {
    const int first = clamped((x[i] - minimum) * factor, 0, 15);
    const int second = clamped((x[i + 16] - minimum) * factor, 0, 15);
    block[4 + i] = static_cast<uint8_t>(first | second << 4);
  }
}

}  // namespace

BST_API void bst_quantize_weights(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_quantize_args*>(args);
  const int64_t blocks = a.n_in / kBlock, size = bst_row_size(a.format, kBlock);
  const Range mine = share(a.n_out * blocks, part, parts);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const float* x = a.source + i / blocks * a.source_stride + i % blocks * kBlock;
    uint8_t* block = static_cast<uint8_t*>(a.blocks) + i * size;
    if (a.format == kQ8_0) q8_0(x, block);
    if (a.format == kQ4_1) q4_1(x, block);
  }
}
