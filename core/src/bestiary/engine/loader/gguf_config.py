"""A GGUF file's metadata as the fields of `config.json`.

The standard keys cover decoder models; a plugin's `GgufArchitecture` adds fields and wins over them. What the file says
of the rotary embedding becomes one `rope_parameters` entry. GGUF expresses Llama 3's scaling as a tensor of divisors,
one per rotary frequency, which no checkpoint does; it is kept as it is, ``{"rope_type": "factors", "rope_theta": θ,
"freq_factors": [...]}``: inverse frequency i is θ^(−2i/d) / freq_factors[i].
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from bestiary.api.errors import ConfigError
from bestiary.api.ggml_types import GgmlType
from bestiary.api.gguf import GgufArchitecture
from bestiary.engine.loader.gguf_reader import GgufFile

REQUIRED_FIELDS = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
}
OPTIONAL_FIELDS = {
    "vocab_size": "vocab_size",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
}
_TOKEN_FIELDS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "pad_token_id": "padding_token_id"}
_ROPE_SCALING = "rope.scaling."
_SCALING_KEYS = {
    "none": set[str](),
    "linear": {"factor"},
    "yarn": {"factor", "original_context_length", "yarn_beta_fast", "yarn_beta_slow"},
    "longrope": {"original_context_length", "attn_factor", "factor"},
}
_WITHOUT_EFFECT = {"type", "finetuned"}


def gguf_config(file: GgufFile, declaration: GgufArchitecture) -> dict[str, object]:
    """The `config.json` that `file` stands for.

    Raises:
        ConfigError: keys that are missing (all of them are listed), of a wrong type, or not understood.
    """
    keys = _Keys(file)
    declared = _declared(keys, declaration)
    _refuse_other_mathematics(keys, set(declaration.config.values()))
    config: dict[str, object] = {"architectures": [declaration.architecture], "model_type": declaration.model_type}
    config |= _sizes(keys, declared)
    rope = _rope_parameters(file, keys, set(declaration.config.values()))
    if rope is not None:
        config["rope_parameters"] = rope | _partial_rotary(keys, config)
    eps = keys.number("attention.layer_norm_rms_epsilon")
    if eps is not None:
        config["rms_norm_eps"] = eps
    for field, key in _TOKEN_FIELDS.items():
        token = keys.whole(f"tokenizer.ggml.{key}", absolute=True)
        if token is not None:
            config[field] = token
    config["tie_word_embeddings"] = "output.weight" not in file.tensors
    return config | declared


_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.causal": (True,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
    "expert_count": (0,),
    "expert_group_count": (0, 1),
    "expert_weights_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),  # softmax
}
"""Keys that change what a model computes → the values that change nothing."""


def _refuse_other_mathematics(keys: _Keys, declared: set[str]) -> None:
    """A file of a relative of the architecture would run, and answer wrongly."""
    asked = {key: keys.value(key) for key in _NEUTRAL if key not in declared}
    unread = {key: value for key, value in asked.items() if value is not None and value not in _NEUTRAL[key]}
    key_length, value_length = keys.value("attention.key_length"), keys.value("attention.value_length")
    if value_length != key_length and None not in (key_length, value_length):
        unread["attention.value_length"] = value_length
    if unread:
        raise ConfigError(
            f"the file asks for what its plugin does not read: {', '.join(sorted(unread))}",
            code="UNSUPPORTED_LAYER",
            field=keys.prefix + min(unread),
            value=unread[min(unread)],
            details=[f"{keys.prefix}{key} = {value}" for key, value in sorted(unread.items())],
            fix="a plugin whose GgufArchitecture.config names these keys",
        )


class _Keys:
    """Typed access to metadata, by default below ``<architecture>.``."""

    def __init__(self, file: GgufFile) -> None:
        self.metadata: Mapping[str, object] = file.metadata
        self.prefix = f"{file.architecture}."

    def value(self, key: str, *, absolute: bool = False) -> object:
        """As plain Python, None where the file does not say."""
        value = self.metadata.get(key if absolute else self.prefix + key)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key} is not a finite number", field=key, value=value, limit="a finite number")
        return value.tolist() if isinstance(value, np.ndarray) else value

    def below(self, start: str) -> set[str]:
        """The keys that begin so, without that beginning."""
        start = self.prefix + start
        return {key.removeprefix(start) for key in self.metadata if key.startswith(start)}

    def whole(self, key: str, *, absolute: bool = False) -> int | list[int] | None:
        """A whole number; of numbers per layer, the one that all layers share, or else the list."""
        value = self.value(key, absolute=absolute)
        if value is None:
            return None
        items = value if isinstance(value, list) else [value]
        numbers = [item for item in items if isinstance(item, int) and not isinstance(item, bool) and item >= 0]
        if not items or len(numbers) < len(items):
            raise ConfigError(f"{key} is not a whole number", field=key, value=value, limit="a whole number from 0 on")
        return numbers[0] if len(set(numbers)) == 1 else numbers

    def number(self, key: str) -> float | None:
        value = self.value(key)
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            return value
        raise ConfigError(f"{key} is not a number", field=key, value=value, limit="a number")


def _declared(keys: _Keys, declaration: GgufArchitecture) -> dict[str, object]:
    """The plugin's own fields: those whose key the file has, then the fixed ones."""
    values = {field: keys.value(key) for field, key in declaration.config.items()}
    return {field: value for field, value in values.items() if value is not None} | dict(declaration.constants)


def _sizes(keys: _Keys, declared: Mapping[str, object]) -> dict[str, object]:
    sizes: dict[str, object] = {}
    missing = []
    for field, key in (REQUIRED_FIELDS | OPTIONAL_FIELDS).items():
        value = keys.whole(key)
        if value is not None:
            sizes[field] = value
        elif field in REQUIRED_FIELDS and field not in declared:
            missing.append(f"{keys.prefix}{key} → {field}")
    if missing:
        raise ConfigError(f"the file's metadata lacks {len(missing)} required keys", details=missing)
    if not sizes.get("sliding_window"):
        sizes.pop("sliding_window", None)  # GGUF writes 0 for none
    if "num_attention_heads" in sizes:
        sizes.setdefault("num_key_value_heads", sizes["num_attention_heads"])
    tokens = keys.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        sizes.setdefault("vocab_size", len(tokens))
    sizes.update(_partial_rotary(keys, sizes))
    return sizes


def _partial_rotary(keys: _Keys, sizes: Mapping[str, object]) -> dict[str, object]:
    """The share of each head that is rotated. All of it is said too: for some models transformers assumes less."""
    rotary = keys.whole("rope.dimension_count")
    hidden, heads, head_dim = sizes.get("hidden_size"), sizes.get("num_attention_heads"), sizes.get("head_dim")
    if head_dim is None and isinstance(hidden, int) and isinstance(heads, int) and heads:
        head_dim = hidden // heads
    if isinstance(rotary, int) and isinstance(head_dim, int) and 0 < rotary <= head_dim:
        return {"partial_rotary_factor": rotary / head_dim}
    return {}


def _rope_parameters(file: GgufFile, keys: _Keys, declared: set[str]) -> dict[str, object] | None:
    """One entry for the whole model, or None for a model without rotary embedding."""
    scaling = keys.below(_ROPE_SCALING)
    theta = keys.number("rope.freq_base")
    factors = _factors(file, "rope_freqs.weight")
    linear = keys.number("rope.scale_linear")  # the key of 2023
    if theta is None and factors is None and not scaling and keys.value("rope.dimension_count") is None:
        return None
    scaled = linear or keys.number(_ROPE_SCALING + "factor")  # without a type: linear, as llama.cpp reads it
    kind = keys.value(_ROPE_SCALING + "type") or ("linear" if scaled else "none")
    if not isinstance(kind, str) or kind not in _SCALING_KEYS:
        raise ConfigError(
            "the rotary embedding is scaled in an unknown way",
            field=keys.prefix + _ROPE_SCALING + "type",
            value=kind,
            limit=f"one of {', '.join(_SCALING_KEYS)}",
        )
    known = _SCALING_KEYS[kind] | _WITHOUT_EFFECT | {key.removeprefix(_ROPE_SCALING) for key in declared}
    unread = sorted(key for key in scaling - known if kind != "none" and keys.value(_ROPE_SCALING + key) != 1.0)
    if unread:
        raise ConfigError(
            f"rope scaling {kind!r} has keys that are not understood",
            details=[keys.prefix + _ROPE_SCALING + key for key in unread],
            fix="the plugin's GgufArchitecture.config must name them",
        )
    rope: dict[str, object] = {
        "rope_type": "default" if kind == "none" else kind,
        "rope_theta": 10000.0 if theta is None else theta,
    }
    if kind != "none":
        rope |= _scaling(file, keys, kind, linear)
    if factors is not None:
        if kind != "none":
            raise ConfigError(f"both rope_freqs.weight and rope scaling {kind!r}", limit="one of the two")
        rope |= {"rope_type": "factors", "freq_factors": factors}
    return rope


def _scaling(file: GgufFile, keys: _Keys, kind: str, linear: float | None) -> dict[str, object]:
    def number(key: str) -> float | None:
        return keys.number(_ROPE_SCALING + key)

    if kind == "longrope":
        entry: dict[str, object] = {
            "long_factor": _factors(file, "rope_factors_long.weight"),
            "short_factor": _factors(file, "rope_factors_short.weight"),
            "attention_factor": number("attn_factor"),
        }
        required = {"long_factor", "short_factor"}
    else:
        entry = {"factor": number("factor") or linear}
        required = {"factor"}
    if kind == "yarn":
        entry |= {"beta_fast": number("yarn_beta_fast"), "beta_slow": number("yarn_beta_slow")}
    if kind in ("yarn", "longrope"):
        entry["original_max_position_embeddings"] = keys.whole(_ROPE_SCALING + "original_context_length")
    missing = sorted(name for name in required if entry[name] is None)
    if missing:
        raise ConfigError(f"rope scaling {kind!r} lacks {', '.join(missing)}", field=keys.prefix + _ROPE_SCALING)
    return {name: value for name, value in entry.items() if value is not None}


def _factors(file: GgufFile, name: str) -> list[float] | None:
    """A one-dimensional float32 tensor as numbers; None where the file has none."""
    tensor = file.tensors.get(name)
    if tensor is None:
        return None
    values = tensor.data.view("<f4") if tensor.type is GgmlType.F32 and len(tensor.shape) == 1 else None
    if values is None or not (np.isfinite(values).all() and (values > 0).all()):
        raise ConfigError(f"{name} is not a list of positive float32 numbers", field=name, value=tensor.shape)
    return [float(value) for value in values]
