// Weights in and out of their packed form. (Layouts: formats.h for quantized ones; floats.h for the others.)
#include "bestiary_cpu.h"
#include "floats.h"
#include "formats.h"
#include "weights.h"

using namespace bst;

BST_API int64_t bst_row_size(int format, int64_t n_in) {
  if (const Quantized* q = quantized_format(format)) {
    const int64_t block = int64_t{kBlock} * q->sub_blocks;
    return n_in % block ? 0 : n_in / block * q->source_bytes;
  }
  return n_in * float_bytes(format);
}

static int64_t panel_size(int format, int64_t n_in) {
  const Quantized* q = quantized_format(format);
  return q ? q->panel_bytes(n_in) : float_panel_bytes(float_bytes(format), n_in);
}

BST_API int64_t bst_packed_size(int format, int64_t n_out, int64_t n_in) {
  return bst_row_size(format, n_in) == 0 ? 0 : panels_of(n_out) * panel_size(format, n_in);
}

BST_API void bst_pack(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_pack_args*>(args);
  const Quantized* q = quantized_format(a.format);
  const int64_t size = panel_size(a.format, a.n_in);
  const Range mine = share(panels_of(a.n_out), part, parts);
  for (int64_t p = mine.begin; p < mine.end; ++p) {
    const int64_t left = a.n_out - p * kLanes;
    const int rows = static_cast<int>(left < kLanes ? left : kLanes);
    auto* panel = static_cast<uint8_t*>(a.packed) + p * size;
    const auto* source = static_cast<const uint8_t*>(a.source) + p * kLanes * a.source_stride;
    if (q) q->pack(panel, a.n_in, source, a.source_stride, rows);
    else pack_floats(panel, size, float_bytes(a.format), a.n_in, source, a.source_stride, rows);
  }
}

static float one_float(int format, const uint8_t* from) {
  uint16_t half;
  float x;
  if (format == kF32) {
    std::memcpy(&x, from, 4);
    return x;
  }
  std::memcpy(&half, from, 2);
  return format == kF16 ? half_to_float(half) : bfloat_to_float(half);
}

static void decode_row(const bst_decode_args& a, int64_t row, float* out) {
  const int lane = static_cast<int>(row % kLanes);
  const auto* panel = static_cast<const uint8_t*>(a.packed) + row / kLanes * panel_size(a.format, a.n_in);
  const Quantized* q = quantized_format(a.format);
  if (!q) {
    const int size = float_bytes(a.format);
    for (int64_t k = 0; k < a.n_in; ++k) out[k] = one_float(a.format, panel + (k * kLanes + lane) * size);
    return;
  }
  float values[kBlock * kLanes];
  for (int64_t block = 0; block < a.n_in / kBlock; ++block) {
    q->decode(panel, a.n_in, block, values);
    for (int k = 0; k < kBlock; ++k) out[block * kBlock + k] = values[k * kLanes + lane];
  }
}

BST_API void bst_decode(const void* args, int part, int parts) {
  const auto& a = *static_cast<const bst_decode_args*>(args);
  const Range mine = share(a.count, part, parts);
  for (int64_t i = mine.begin; i < mine.end; ++i) decode_row(a, a.ids ? a.ids[i] : i, a.out + i * a.out_stride);
}
