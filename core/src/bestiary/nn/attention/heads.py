"""What an attention layer does to its queries and keys before it attends: norms of each head, and rotation."""

from __future__ import annotations

from torch import Tensor, nn

from bestiary.api.errors import ConfigError, EngineError
from bestiary.nn.norm import GemmaRMSNorm, RMSNorm
from bestiary.nn.ops.heads import QKNorm, qk_norm_rope, qk_norm_rope_cache
from bestiary.nn.rotary.embedding import RotaryEmbedding

_Norms = tuple[RMSNorm, RMSNorm] | tuple[GemmaRMSNorm, GemmaRMSNorm]


class HeadTransform:
    """Normalises and rotates with modules that belong to the model: this is no module, and owns nothing."""

    def __init__(self, rotary_emb: RotaryEmbedding, norms: _Norms | None) -> None:
        self.rotary_emb = rotary_emb
        self.norms = norms

    @classmethod
    def of(
        cls, rotary_emb: RotaryEmbedding | None, q_norm: nn.Module | None, k_norm: nn.Module | None, head_size: int
    ) -> HeadTransform | None:
        """None where a layer has none of these.

        Raises:
            ConfigError: norms without rotation, one without the other, or of other kinds than one RMS norm a head.
        """
        if q_norm is None and k_norm is None:
            return None if rotary_emb is None else cls(rotary_emb, None)
        if rotary_emb is None:
            raise ConfigError(
                "Attention takes norms of queries and keys together with a rotary embedding", field="rotary_emb",
                fix="norm them before, and call Attention with what comes of it",
            )  # fmt: skip
        norms = _of_a_kind(q_norm, k_norm)
        if norms is None or any(
            (each.hidden_size, each.variance_epsilon) != (head_size, norms[0].variance_epsilon) for each in norms
        ):
            raise ConfigError(
                "Attention takes norms of each head of queries and keys: two of RMSNorm or of GemmaRMSNorm",
                code="UNSUPPORTED_LAYER", field="q_norm", value=f"{q_norm!r}, {k_norm!r}", limit=f"size {head_size}",
                fix="norm and rotate before, and call Attention with what comes of it",
            )  # fmt: skip
        return cls(rotary_emb, norms)

    def __call__(self, positions: Tensor | None, query: Tensor, key: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Flat queries and keys, turned; neither is changed. `key` may be None."""
        rope = self.rotary_emb
        cos, sin = self._angles(positions, query)
        return qk_norm_rope(query, key, cos, sin, rope.head_size, rope.is_neox_style, self._norm)

    def into_cache(
        self, positions: Tensor | None, query: Tensor, key: Tensor, value: Tensor,
        kv_cache: Tensor, slots: Tensor, k_scale: float, v_scale: float,
    ) -> Tensor:  # fmt: skip
        """The same, and keys and values written (`qk_norm_rope_cache`); the queries as scores want them."""
        cos, sin = self._angles(positions, query)
        return qk_norm_rope_cache(
            query, key, value, kv_cache, slots, cos, sin, self.rotary_emb.is_neox_style, self._norm, k_scale, v_scale
        )

    def _angles(self, positions: Tensor | None, query: Tensor) -> tuple[Tensor, Tensor]:
        if positions is None:
            raise EngineError("an attention layer with a rotary embedding needs the tokens' positions")
        return self.rotary_emb.rows(positions, self.rotary_emb.dtype or query.dtype)

    @property
    def _norm(self) -> QKNorm | None:
        """As the ops take it. Weights are read each time: loading replaces them."""
        if self.norms is None:
            return None
        query, key = self.norms
        return QKNorm(query.weight, key.weight, query.variance_epsilon, isinstance(query, GemmaRMSNorm))


def _of_a_kind(q_norm: nn.Module | None, k_norm: nn.Module | None) -> _Norms | None:
    if isinstance(q_norm, RMSNorm) and isinstance(k_norm, RMSNorm):
        return q_norm, k_norm
    if isinstance(q_norm, GemmaRMSNorm) and isinstance(k_norm, GemmaRMSNorm):
        return q_norm, k_norm
    return None
