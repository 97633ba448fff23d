"""Joining recorded calls: what one kernel writes and the next one reads at once is done by the first.

* Rows that a norm, an activation or attention gives are prepared for a product by the same kernel.
* Keys are written to the cache by the kernel that rotates them.

Results are the same bit for bit: each kernel's optional outputs are made by the code of the call that goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .pool import Call

if TYPE_CHECKING:
    pass

_WIDTHS = {
    "bst_norm": lambda args: args.n,
    "bst_activation": lambda args: args.n,
    "bst_attention": lambda args: args.heads * args.head_size,
    "bst_attention_join": lambda args: args.heads * args.head_size,
}
"""Kernels that can prepare what they give → its columns."""


def fused(nodes: Sequence[Any]) -> list[Any]:
    """Fewer nodes that do the same. The arguments of those that stay may change."""
    found: list[Any] = []
    for node in nodes:
        before = found[-1] if found else None
        if not isinstance(node, Call) or not isinstance(before, Call) or not _joined(before, node):
            found.append(node)
    return found


def _joined(before: Call, call: Call) -> bool:
    """Whether `before` does from now on what `call` did."""
    if call.kernel == "bst_prepare" and before.kernel in _WIDTHS:
        return _prepares(before, call.args)
    if call.kernel == "bst_rope" and before.kernel == "bst_rope":
        return _caches(before.args, call.args)
    return False


def _prepares(before: Call, prepare: Any) -> bool:
    args: Any = before.args
    same = args.out == prepare.x and args.rows == prepare.rows and _WIDTHS[before.kernel](args) == prepare.n_in
    evenly = args.out_stride == prepare.x_stride or prepare.rows == 1
    if not same or not evenly or prepare.rows_of or args.prepared or prepare.n_in % 32:
        return False
    if before.kernel.startswith("bst_attention") and args.head_size % 32:
        return False
    args.prepared, args.quantized = prepare.prepared, prepare.quantized
    return True


def _caches(rotation: Any, write: Any) -> bool:
    """`write` rotates nothing and puts into the cache what `rotation` gave."""
    if write.rotary_dim or rotation.kv_cache or not rotation.key_out:
        return False
    if (rotation.key_out, rotation.rows, rotation.kv_heads) != (write.key, write.rows, write.kv_heads):
        return False
    for name in ("value", "value_stride", "slots", "kv_type", "block_size", "kv_cache"):
        setattr(rotation, name, getattr(write, name))
    return True
