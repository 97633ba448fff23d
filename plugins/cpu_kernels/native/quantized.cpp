// The quantized formats' kernels: every format's templates, put into tables.
#include "formats.h"
#include "weights.h"

namespace bst {
namespace {

template <class F>
void pack(uint8_t* panel, int64_t columns, const uint8_t* source, int64_t stride, int rows) {
  std::memset(panel, 0, static_cast<size_t>(Panel<F>::bytes(columns)));
  uint8_t* heads = panel + Panel<F>::codes_bytes(columns);
  uint8_t code[kBlock];
  for (int64_t super = 0; super < columns / (kBlock * F::kSubBlocks); ++super) {
    for (int lane = 0; lane < rows; ++lane) {
      const uint8_t* block = source + lane * stride + super * F::kSourceBytes;
      F::head::put(heads + super * Panel<F>::kHead, lane, block);
      for (int j = 0; j < F::kSubBlocks; ++j) {
        F::codes(block, j, code);
        write_codes<F::kStored>(panel + (super * F::kSubBlocks + j) * Panel<F>::kCodes, lane, code);
      }
    }
  }
}

template <class K>
void to_floats(const Decoded& w, float* to) {
  float scale[kLanes], second[kLanes];
  store(scale, w.scale);
  if (K::kMinimum || K::kHalves) store(second, w.second);
  for (int k = 0; k < kBlock; ++k) {
    uint8_t codes[kVector];
    store_bytes(codes, w.q[k / 4]);
    for (int lane = 0; lane < kLanes; ++lane) {
      const int weight = codes[4 * lane + k % 4] - K::kZero;
      const float product = static_cast<float>(weight) * (K::kHalves && k >= 16 ? second[lane] : scale[lane]);
      to[k * kLanes + lane] = K::kMinimum ? product + second[lane] : product;
    }
  }
}

template <class F>
void decode(const uint8_t* panel, int64_t columns, int64_t block, float* to) {
  Decoded w;
  decode_block<F>(panel, panel + Panel<F>::codes_bytes(columns), block, w);
  to_floats<typename F::kind>(w, to);
}

// Asks for what lies from `at` on to be brought into the second cache.
template <int kBytes>
static inline void fetch(const uint8_t* at) {
  for (int i = 0; i < kBytes; i += 64) __builtin_prefetch(at + i, 0, 2);
}

// kRows rows with kPanels neighbouring panels. Few rows wait for memory: a processor looks ahead in each stream only so
// far, and not beyond a page.
template <class F, int kRows, int kPanels>
BST_ALL_INLINE void product(const uint8_t* panel, int64_t columns, int64_t ahead, const Record* x, int64_t step,
                            float* acc) {
  const int64_t size = Panel<F>::bytes(columns);
  const uint8_t* codes = panel;
  const uint8_t* heads = panel + Panel<F>::codes_bytes(columns);
  Floats sum[kPanels][kRows];
  for (auto& rows : sum)
    for (auto& each : rows) each = set(0.0f);
  for (int64_t left = columns / (kBlock * F::kSubBlocks); left > 0; --left) {
#pragma GCC unroll 1
    for (int j = 0; j < F::kSubBlocks; ++j) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        Decoded w;
        fetch<Panel<F>::kCodes>(codes + p * size + ahead);
        if (j == 0) fetch<Panel<F>::kHead>(heads + p * size + ahead);
        F::decode(codes + p * size, w);
        F::head::get(heads + p * size, j, w);
        add_block<typename F::kind, kRows>(w, x, sum[p]);
      }
      codes += Panel<F>::kCodes;
      x += step;
    }
    heads += Panel<F>::kHead;
  }
  for (int p = 0; p < kPanels; ++p)
    for (int r = 0; r < kRows; ++r) store(acc + (p * kRows + r) * kLanes, sum[p][r]);
}

template <class F, int kRows>
constexpr std::array<Product, kPanels> products() {
  if constexpr (panels_at_once(kRows) == 1) return {product<F, kRows, 1>};
  else return {product<F, kRows, 1>, product<F, kRows, 2>, product<F, kRows, 3>, product<F, kRows, 4>};
}

template <class F>
constexpr Quantized table(int format) {
  return {format,
          F::kSubBlocks,
          F::kSourceBytes,
          Panel<F>::bytes,
          pack<F>,
          decode<F>,
          {products<F, 1>(), products<F, 2>(), products<F, 3>(), products<F, 4>(), products<F, 5>(), products<F, 6>(),
           products<F, 7>(), products<F, 8>()}};
}

constexpr Quantized kFormats[] = {
    table<Q4_0>(2),  table<Q4_1>(3),  table<Q5_0>(6),  table<Q5_1>(7),   table<Q8_0>(8),
    table<Q4_K>(12), table<Q5_K>(13), table<Q6_K>(14), table<IQ4_NL>(20),
};

}  // namespace

const Quantized* quantized_format(int format) {
  for (const auto& each : kFormats)
    if (each.format == format) return &each;
  return nullptr;
}

}  // namespace bst
