#pragma once
#include "bestiary_cpu.h"
#include "records.h"

namespace bst {

// The part of a product with fp32, fp16 or bfloat16 weights that lies in these panels.
void float_product(const bst_matmul_args& a, Range panels);

}  // namespace bst
