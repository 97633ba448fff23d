"""The first Qwen's configuration, which transformers does not carry, from the fields of `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from bestiary.api.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class QWenConfig:
    """Fields without a default must be there; the defaults are those of the published configuration class.

    Attributes:
        intermediate_size: twice the MLP's width, since the published class counts both of its projections.
        seq_length: the length of training, beyond which the two features begin that lengthen the context.
        kv_channels: channels a head; where absent, `hidden_size` shared among the heads.
        rope_parameters: a scaling of the rotary embedding by rope type, as later models have it.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    seq_length: int
    max_position_embeddings: int = 8192
    kv_channels: int = 0
    layer_norm_epsilon: float = 1e-6
    rotary_pct: float = 1.0
    rotary_emb_base: float = 10_000.0
    use_dynamic_ntk: bool = True
    use_logn_attn: bool = True
    no_bias: bool = True
    scale_attn_weights: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, bool) and not isinstance(value, bool):
                raise ConfigError(f"{field.name} is refused", field=field.name, value=value, limit="true or false")
        if self.intermediate_size % 2:
            raise ConfigError(
                "the MLP's width is half of this", field="intermediate_size", value=self.intermediate_size, limit="even"
            )
        if self.use_logn_attn and self.seq_length < 2:
            raise ConfigError(
                "log-n attention divides by its logarithm",
                field="seq_length",
                value=self.seq_length,
                limit="at least 2",
            )

    @property
    def head_dim(self) -> int:
        return self.kv_channels or self.hidden_size // self.num_attention_heads


def qwen_config(data: Mapping[str, Any]) -> QWenConfig:
    """The configuration in checked `data`; null counts as absent. `ConfigError` names everything that is missing."""
    given = {field.name: data[field.name] for field in fields(QWenConfig) if data.get(field.name) is not None}
    if data.get("partial_rotary_factor") is not None:  # what core makes of a GGUF file that rotates a part of each head
        given.setdefault("rotary_pct", data["partial_rotary_factor"])
    required = [field.name for field in fields(QWenConfig) if field.default is MISSING]
    missing = [name for name in required if name not in given]
    if missing:
        raise ConfigError(
            f"a configuration of model_type 'qwen' lacks {len(missing)} field(s)",
            field=missing[0], limit="given", details=missing, fix="add them to config.json, or use hf_overrides",
        )  # fmt: skip
    return QWenConfig(**given)
