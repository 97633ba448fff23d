// Tables of what each format can do, so that the rest of the library never asks which one it has.
#pragma once
#include "kinds.h"

namespace bst {

constexpr int kPanels = 4;  // that one row meets at once

// A quantized format. `panel` is one packed panel of `columns` columns; x the first Record of rows in a tile, `step`
// the Records from block to block; acc fp32 [rows][kLanes].
struct Quantized {
  int format, sub_blocks, source_bytes;
  int64_t (*panel_bytes)(int64_t columns);
  void (*pack)(uint8_t* panel, int64_t columns, const uint8_t* source, int64_t stride, int rows);
  void (*decode)(const uint8_t* panel, int64_t columns, int64_t block, float* to);  // fp32 [32][kLanes]
  void (*product[kTile])(const uint8_t* panel, int64_t columns, const Record* x, int64_t step, float* acc);
  // One row with neighbouring panels: acc fp32 [panels][kLanes].
  void (*single[kPanels])(const uint8_t* panel, int64_t columns, const Record* x, float* acc);
};

const Quantized* quantized_format(int format);  // null: not one of them

enum : int { kF32 = 0, kF16 = 1, kBF16 = 30 };
static inline int float_bytes(int format) { return format == kF32 ? 4 : format == kF16 || format == kBF16 ? 2 : 0; }

}  // namespace bst
