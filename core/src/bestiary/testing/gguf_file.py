"""Writing a checkpoint as a GGUF file, with the `gguf` package and as llama.cpp's converter lays one out.

Names come from the package's own table, metadata from `config.json`'s fields, experts of one projection are stacked,
and the rows of rotary projections are interleaved for the architectures that llama.cpp computes so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import nn

from bestiary.api.errors import UsageError

Array = np.ndarray[Any, Any]
Rows = Callable[[str, Array], Array]

INTERLEAVED = frozenset(
    ("llama", "granite", "granitemoe", "deci", "minicpm", "arcee", "smollm3", "olmo", "baichuan", "xverse", "internlm2")
)
"""`general.architecture` whose files hold the rows of q and k for pairs (2i, 2i + 1), while checkpoints do not."""
_HEADS = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
_EXPERT = re.compile(r"^(?P<before>.*\.experts)\.(?P<number>\d+)\.(?P<after>.*)$")
_SUFFIXES = (".weight", ".bias")

_FIELDS: Mapping[str, tuple[str, ...]] = {
    "add_context_length": ("max_position_embeddings", "n_positions", "seq_length"),
    "add_embedding_length": ("hidden_size", "n_embd"),
    "add_block_count": ("num_hidden_layers", "n_layer"),
    "add_feed_forward_length": ("intermediate_size", "n_inner"),
    "add_head_count": ("num_attention_heads", "n_head"),
    "add_head_count_kv": ("num_key_value_heads",),
    "add_layer_norm_rms_eps": ("rms_norm_eps",),
    "add_layer_norm_eps": ("layer_norm_eps", "layer_norm_epsilon"),
    "add_vocab_size": ("vocab_size",),
    "add_expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "add_expert_used_count": ("num_experts_per_tok",),
    "add_expert_feed_forward_length": ("moe_intermediate_size",),
    "add_expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
}
"""Method of `GGUFWriter` → the fields of a configuration it takes its value from, the first there is."""


def tensor_names(architecture: str, layers: int) -> Callable[[str], str | None]:
    """The gguf package's own names: checkpoint name → GGUF name, None where it knows none.

    Raises:
        UsageError: it does not know the architecture.
    """
    known = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    if architecture not in known:
        raise UsageError("the gguf package knows no such architecture", field="gguf", value=architecture)
    table = gguf.get_tensor_name_map(known[architecture], layers)
    spellings = ("", "transformer.", "model.")  # the package knows some architectures by their bare model's names
    return lambda name: next(
        (found for each in spellings if (found := table.get_name(name.removeprefix(each), try_suffixes=_SUFFIXES))),
        None,
    )


def merged(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with those of numbered experts stacked, under the name without the number."""
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        match = _EXPERT.match(name)
        if match is None:
            found[name] = tensor
        else:
            found.setdefault(f"{match['before']}.{match['after']}", {})[int(match["number"])] = tensor
    return {
        name: torch.stack([each[i] for i in sorted(each)]) if isinstance(each, dict) else each
        for name, each in found.items()
    }


def write_gguf(
    path: Path,
    architecture: str,
    tensors: Mapping[str, torch.Tensor],
    config: Any,
    *,
    kind: str = "F32",
    rows: Rows | None = None,
    metadata: Callable[[Any], None] | None = None,
    inv_freq: torch.Tensor | None = None,
) -> None:
    """Write `tensors`, named as in the checkpoint, as a GGUF file.

    Args:
        config: a configuration object, its fields read as attributes. kind: the type of matrices whose rows it divides.
        rows: (checkpoint name, array) → the array as the file stores it; default: `stored_rows`.
        metadata: called with the `GGUFWriter` after the fields of `config`. inv_freq: of the rotary embedding, for
            Llama 3's scaling, which a file expresses as one factor a frequency.
    """
    rows = rows or (lambda name, array: stored_rows(architecture, name, array, config))
    quantized, plain = gguf.GGMLQuantizationType[kind], gguf.GGMLQuantizationType.F32
    names = tensor_names(architecture, int(config.num_hidden_layers))
    writer = gguf.GGUFWriter(path, architecture)
    write_metadata(writer, config)
    if metadata is not None:
        metadata(writer)
    for name, tensor in merged(tensors).items():
        stored = names(name)
        if stored is None:
            raise UsageError("the gguf package has no name for this tensor", field=name, value=architecture)
        array = np.ascontiguousarray(rows(name, tensor.float().numpy()))
        if quantized is not plain and is_quantized(tensor, kind):
            writer.add_tensor(stored, gguf.quantize(array, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(stored, array)
    for stored, array in _rope_tensors(config, inv_freq).items():
        writer.add_tensor(stored, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def is_quantized(tensor: torch.Tensor, kind: str) -> bool:
    """Whether `write_gguf` stores this tensor in blocks: a matrix whose rows are whole blocks."""
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return tensor.dim() > 1 and tensor.shape[-1] % block == 0


def rounded(tensors: Mapping[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """The numbers that a file of this kind holds, under the checkpoint's names: each quantized and decoded again."""
    quantized = gguf.GGMLQuantizationType[kind]
    return {
        name: torch.from_numpy(gguf.dequantize(gguf.quantize(tensor.float().numpy(), quantized), quantized))
        if is_quantized(tensor, kind)
        else tensor
        for name, tensor in tensors.items()
    }


def stored_rows(architecture: str, name: str, array: Array, config: Any) -> Array:
    """Rows of q and k with each head's rotary pairs side by side, where the architecture is one of `INTERLEAVED`."""
    heads = _HEADS.get(name.split(".")[-2]) if "." in name else None
    if architecture not in INTERLEAVED or heads is None:
        return array
    count = int(getattr(config, heads))
    return array.reshape(count, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def write_metadata(writer: Any, config: Any) -> None:
    """The standard keys, from the fields that `config` has."""
    for method, fields in _FIELDS.items():
        value = next((found for field in fields if (found := getattr(config, field, None)) is not None), None)
        if value is not None:
            getattr(writer, method)(value)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True):
        writer.add_sliding_window(window)
    rope = getattr(config, "rope_parameters", None)
    if rope:
        _write_rope(writer, rope, head_dim)


def _write_rope(writer: Any, rope: Mapping[str, Any], head_dim: int) -> None:
    kind = rope.get("rope_type", "default")
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    if kind in ("linear", "yarn", "longrope"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_factor(rope["factor"])
    if kind in ("yarn", "longrope"):
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if kind == "longrope" and rope.get("attention_factor") is not None:
        writer.add_rope_scaling_attn_factors(rope["attention_factor"])


def _rope_tensors(config: Any, inv_freq: torch.Tensor | None) -> dict[str, Array]:
    """What files say of rotary frequencies by tensors: divisors of Llama 3's scaling, LongRoPE's two lists."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{each}.weight": np.array(rope[f"{each}_factor"], np.float32) for each in ("long", "short")
        }
    if rope.get("rope_type") != "llama3" or inv_freq is None:
        return {}
    size = 2 * len(inv_freq)
    plain = 1 / rope["rope_theta"] ** (torch.arange(0, size, 2) / size)
    return {"rope_freqs.weight": (plain / inv_freq).float().numpy()}


def find_inv_freq(model: nn.Module) -> torch.Tensor | None:
    """The inverse frequencies of a reference's rotary embedding, None where it has none."""
    return next((buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq")), None)
