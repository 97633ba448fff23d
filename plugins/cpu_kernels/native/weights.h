// Tables of what each format can do, so that the rest of the library never asks which one it has.
#pragma once
#include <array>

#include "kinds.h"

namespace bst {

// How many neighbouring panels the rows of a tile meet at once. Up to four rows are bound by memory, which is read faster
// in several streams; more are bound by arithmetic, and registers hold the sums of one panel.
constexpr int panels_at_once(int rows) { return rows <= 4 ? kPanels : 1; }

// Rows of a tile with neighbouring panels of `columns` columns: x is the first row's first Record, `step` the Records
// from block to block; acc fp32 [panels][rows][kLanes]. What lies `ahead` bytes behind a weight is soon needed.
using Product = void (*)(const uint8_t* panel, int64_t columns, int64_t ahead, const Record* x, int64_t step, float* acc);

// A quantized format. `panel` is one packed panel of `columns` columns.
struct Quantized {
  int format, sub_blocks, source_bytes;
  int64_t (*panel_bytes)(int64_t columns);
  void (*pack)(uint8_t* panel, int64_t columns, const uint8_t* source, int64_t stride, int rows);
  void (*decode)(const uint8_t* panel, int64_t columns, int64_t block, float* to);  // fp32 [32][kLanes]
  std::array<Product, kPanels> product[kTile];  // [rows - 1][panels - 1], up to panels_at_once
};

const Quantized* quantized_format(int format);  // null: not one of them

enum : int { kF32 = 0, kF16 = 1, kBF16 = 30 };
static inline int float_bytes(int format) { return format == kF32 ? 4 : format == kF16 || format == kBF16 ? 2 : 0; }

}  // namespace bst
