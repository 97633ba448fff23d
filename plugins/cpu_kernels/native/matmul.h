#pragma once
#include "bestiary_cpu.h"
#include "records.h"

namespace bst {

// The part of a product that lies in these panels.
void product(const bst_matmul_args& a, Range panels);

// The same with fp32, fp16 or bfloat16 weights.
void float_product(const bst_matmul_args& a, Range panels);

}  // namespace bst
