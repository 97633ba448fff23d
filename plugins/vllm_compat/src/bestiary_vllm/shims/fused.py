"""What vLLM has as one kernel, in the steps that it consists of."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bestiary.nn.ops.norm import rms_norm
from bestiary.nn.ops.rotary import rotary_angles, rotary_embedding


def fused_qk_rmsnorm_rope_gate(
    q_gate: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos_sin_cache: Tensor,
    positions: Tensor,
    eps: float,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    mrope_section: Sequence[int] | None = None,
    norm_beta: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and their gates taken apart, heads normed, then rotated: queries, keys, gates, each ``[tokens, …]``.

    `q_gate` has each head's query and gate side by side; weights of norms have `norm_beta` added. `rotary_dim` is the
    width of `cos_sin_cache`, and the axes of positions (`mrope_section`) are all the same for text.
    """
    q, gate = q_gate.reshape(-1, num_q_heads, 2 * head_dim).chunk(2, -1)
    q, k = (
        rms_norm(each.float(), weight.float() + norm_beta, eps).to(each.dtype).flatten(1)
        for each, weight in ((q, q_weight), (k.reshape(-1, num_kv_heads, head_dim), k_weight))
    )
    at = positions[0] if positions.dim() == 2 else positions
    cos, sin = rotary_angles(cos_sin_cache, at, True, q.dtype)
    query, key = rotary_embedding(q, k, cos, sin, head_dim, True)
    return query, k if key is None else key, gate.flatten(1)
