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

// kRows rows with one panel.
template <class F, int kRows>
void product(const uint8_t* panel, int64_t columns, const Record* x, int64_t step, float* acc) {
  const uint8_t* codes = panel;
  const uint8_t* heads = panel + Panel<F>::codes_bytes(columns);
  Floats sum[kRows];
  for (int r = 0; r < kRows; ++r) sum[r] = set(0.0f);
  for (int64_t left = columns / (kBlock * F::kSubBlocks); left > 0; --left) {
#pragma GCC unroll 1
    for (int j = 0; j < F::kSubBlocks; ++j) {
      Decoded w;
      F::decode(codes, w);
      F::head::get(heads, j, w);
      add_block<typename F::kind, kRows>(w, x, sum);
      codes += Panel<F>::kCodes;
      x += step;
    }
    heads += Panel<F>::kHead;
  }
  for (int r = 0; r < kRows; ++r) store(acc + r * kLanes, sum[r]);
}

constexpr int64_t kAhead = 2048;  // bytes that memory is asked for in advance, into the second cache

// One row with kPanels neighbouring panels at once. Such a product waits for memory; a processor looks ahead in each
// stream only so far, and several streams together reach what one does not.
template <class F, int kPanels>
void single(const uint8_t* panel, int64_t columns, const Record* x, float* acc) {
  const int64_t size = Panel<F>::bytes(columns);
  const uint8_t* codes = panel;
  const uint8_t* heads = panel + Panel<F>::codes_bytes(columns);
  Floats sum[kPanels][1];
  for (auto& each : sum) each[0] = set(0.0f);
  for (int64_t left = columns / (kBlock * F::kSubBlocks); left > 0; --left) {
#pragma GCC unroll 1
    for (int j = 0; j < F::kSubBlocks; ++j) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        Decoded w;
        for (int at = 0; at < Panel<F>::kCodes; at += 64) __builtin_prefetch(codes + p * size + kAhead + at, 0, 2);
        F::decode(codes + p * size, w);
        F::head::get(heads + p * size, j, w);
        add_block<typename F::kind, 1>(w, x, sum[p]);
      }
      codes += Panel<F>::kCodes;
      ++x;
    }
    heads += Panel<F>::kHead;
  }
  for (int p = 0; p < kPanels; ++p) store(acc + p * kLanes, sum[p][0]);
}

template <class F>
constexpr Quantized table(int format) {
  return {format,
          F::kSubBlocks,
          F::kSourceBytes,
          Panel<F>::bytes,
          pack<F>,
          decode<F>,
          {product<F, 1>, product<F, 2>, product<F, 3>, product<F, 4>, product<F, 5>, product<F, 6>, product<F, 7>,
           product<F, 8>},
          {single<F, 1>, single<F, 2>, single<F, 3>, single<F, 4>}};
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
