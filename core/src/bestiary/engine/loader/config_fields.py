"""The fields that decoder configurations have in common, under every name they go by, and the rule each obeys.

Caps are an order of magnitude above the largest model known, so that an absurd number is refused before anything is
allocated from it. Fields not named here are the model class's own business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bestiary.api.errors import ConfigError, shorten

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Count:
    """An integer from `low` to `high`; None where `nullable`; a list of them (one a layer) where `per_layer`."""

    high: int
    low: int = 1
    nullable: bool = False
    per_layer: bool = False

    def __str__(self) -> str:
        return f"an integer from {self.low} to {self.high}" + (" or null" if self.nullable else "")

    def accepts(self, value: object) -> bool:
        if value is None:
            return self.nullable
        if isinstance(value, list):
            return self.per_layer and 0 < len(value) <= MAX_LAYERS and all(self._is_count(item) for item in value)
        return self._is_count(value)

    def _is_count(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number above 0 (or from 0 where `zero`) up to `high`; null where `nullable`."""

    high: float
    zero: bool = False
    nullable: bool = True

    def __str__(self) -> str:
        return f"a number {'from' if self.zero else 'above'} 0, at most {self.high:g}" + (
            " or null" if self.nullable else ""
        )

    def accepts(self, value: object) -> bool:
        if value is None:
            return self.nullable
        if not is_number(value):
            return False
        return 0 < value <= self.high or (self.zero and value == 0)  # type: ignore[operator]


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false, and nothing that merely looks like it."""

    def __str__(self) -> str:
        return "true or false"

    def accepts(self, value: object) -> bool:
        return isinstance(value, bool)


def is_number(value: object) -> bool:
    """A finite int or float; a bool is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


MAX_LAYERS = 2_000
_WIDTH = Count(2**20)
_MAYBE_WIDTH = Count(2**24, nullable=True, per_layer=True)
_EXPERT_WIDTH = Count(2**24, low=0, nullable=True, per_layer=True)
_HEADS = Count(2**16, per_layer=True)
_MAYBE_HEADS = Count(2**16, nullable=True, per_layer=True)
_LAYERS = Count(MAX_LAYERS)
_EXPERTS = Count(2**16, low=0, nullable=True, per_layer=True)
_POSITIONS = Count(2**25, nullable=True)
_EPSILON = Number(1.0, nullable=False)
_SHARE = Number(1.0)

HIDDEN = ("hidden_size", "n_embd", "n_embed", "d_model")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = ("num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num")
HEAD_DIM = (
    "head_dim",
    "attention_head_dim",
    "attention_head_size",
    "d_kv",
    "kv_channels",
    "qk_nope_head_dim",
    "qk_head_dim",
)

RULES: dict[str, Count | Number | Flag] = {
    **dict.fromkeys(HIDDEN, _WIDTH),
    **dict.fromkeys(HEADS, _HEADS),
    **dict.fromkeys(KV_HEADS, _MAYBE_HEADS),
    **dict.fromkeys(HEAD_DIM, Count(2**16, nullable=True)),
    **dict.fromkeys(("v_head_dim", "qk_rope_head_dim", "q_lora_rank", "kv_lora_rank"), Count(2**20, nullable=True)),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), _LAYERS),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "ffn_dim", "ffn_hidden_size"), _MAYBE_WIDTH),
    **dict.fromkeys(
        ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), _EXPERT_WIDTH
    ),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "n_shared_experts"), _EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk"), _EXPERTS),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length"), _POSITIONS),
    **dict.fromkeys(("original_max_position_embeddings",), _POSITIONS),
    "vocab_size": Count(10**8),
    "num_labels": Count(10**6, low=0, nullable=True),
    "sliding_window": Count(2**32, low=0, nullable=True, per_layer=True),  # 0 is how some write "none"
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon"), _EPSILON),
    **dict.fromkeys(("rope_theta", "rope_local_base_freq", "rotary_emb_base"), Number(1e18)),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), _SHARE),
    **dict.fromkeys(
        ("attn_logit_softcapping", "final_logit_softcapping", "logits_scaling", "logit_scale"), Number(1e9, zero=True)
    ),
    **dict.fromkeys(("tie_word_embeddings", "use_cache", "mlp_bias", "is_encoder_decoder"), Flag()),
    **dict.fromkeys(("use_sliding_window", "norm_topk_prob", "use_qk_norm", "qk_layernorm", "multi_query"), Flag()),
    **dict.fromkeys(("attention_bias", "new_decoder_architecture", "parallel_attn", "alibi"), Flag()),
}
_DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "auto",
)


@dataclass(frozen=True, slots=True)
class Offence:
    """A field that breaks its rule."""

    field: str
    rule: str
    value: object

    def __str__(self) -> str:
        return f"{self.field} = {shorten(self.value)}: must be {self.rule}"


def refuse(offences: Sequence[Offence]) -> None:
    """One error for all of them; nothing where there are none."""
    if offences:
        first = offences[0]
        message = f"{first.field} is refused" if len(offences) == 1 else f"{len(offences)} fields are refused"
        details = () if len(offences) == 1 else [str(offence) for offence in offences]
        value = "null" if first.value is None else first.value
        raise ConfigError(message, field=first.field, limit=first.rule, value=value, details=details)


def check_fields(data: Config, where: str) -> list[Offence]:
    """Every field of `data` that breaks its rule; `where` is the prefix of its path (``text_config.``)."""
    return [
        Offence(where + name, str(rule), data[name])
        for name, rule in RULES.items()
        if name in data and not rule.accepts(data[name])
    ] + _check_dtype(data, where)


def check_ratios(data: Config, where: str) -> list[Offence]:
    """Attention heads share `hidden_size` evenly unless a head size is given, and key-value heads share the heads."""
    hidden, heads, kv_heads = (first_given(data, names) for names in (HIDDEN, HEADS, KV_HEADS))
    if heads is None or not isinstance(heads[1], int):
        return []
    offences = []
    if hidden is not None and first_given(data, HEAD_DIM) is None and hidden[1] % heads[1]:
        rule = f"a divisor of {where}{hidden[0]} = {hidden[1]} unless head_dim is given"
        offences.append(Offence(where + heads[0], rule, heads[1]))
    if kv_heads is not None and isinstance(kv_heads[1], int) and heads[1] % kv_heads[1]:
        rule = f"a divisor of {where}{heads[0]} = {heads[1]}"
        offences.append(Offence(where + kv_heads[0], rule, kv_heads[1]))
    return offences


def first_given(data: Config, names: tuple[str, ...]) -> tuple[str, Any] | None:
    """The first of the aliases that has a value, with the value."""
    return next(((name, data[name]) for name in names if data.get(name) is not None), None)


def _check_dtype(data: Config, where: str) -> list[Offence]:
    offences = []
    for name in ("dtype", "torch_dtype"):
        value = data.get(name)
        for item in value.values() if isinstance(value, dict) else (value,):
            if item is not None and not (isinstance(item, str) and item.removeprefix("torch.") in _DTYPES):
                offences.append(Offence(where + name, f"one of {', '.join(_DTYPES)}", item))
    return offences
