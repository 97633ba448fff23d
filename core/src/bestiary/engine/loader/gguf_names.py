"""GGUF tensor names and checkpoint names, both ways.

GGUF has one vocabulary of tensor names for all architectures; checkpoints do not. The standard names below lead to the
commonest layout, Llama's; a plugin's `GgufArchitecture.tensors` adds to them and wins over them. In both vocabularies
``{bid}`` is the first number between dots, the layer's. A name without its ``.weight`` or ``.bias`` speaks for both.

Merged experts keep one tensor per projection, (experts, out features, in features): ``mlp.experts.gate_proj.weight``,
``up_proj``, ``down_proj``; GGUF's `ffn_gate_up_exps` is ``gate_up_proj``, the gate's rows first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from bestiary.api.errors import WeightsMismatch
from bestiary.api.gguf import GgufArchitecture
from bestiary.engine.loader.gguf_reader import GgufFile

_LAYER_STEMS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_up_exps": "mlp.experts.gate_up_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}

STANDARD_NAMES: Mapping[str, str | None] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "rope_freqs": None,  # the rope factors belong to the configuration
    "rope_factors_long": None,
    "rope_factors_short": None,
    "blk.{bid}.attn_rot_embd": None,
    **{f"blk.{{bid}}.{stem}": f"model.layers.{{bid}}.{name}" for stem, name in _LAYER_STEMS.items()},
}

_FIRST_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_BID = "{bid}"


class GgufNames:
    """The names of one architecture."""

    def __init__(self, declaration: GgufArchitecture) -> None:
        self._forward = (declaration.tensors, STANDARD_NAMES)
        self._backward = tuple(
            {checkpoint: gguf for gguf, checkpoint in table.items() if checkpoint is not None}
            for table in self._forward
        )

    def to_checkpoint(self, name: str) -> str | None:
        """The checkpoint's name of a GGUF tensor, None where it is not a weight.

        Raises:
            KeyError: neither the standard names nor the plugin's know it.
        """
        for table in self._forward:
            found, translated = _look_up(table, name)
            if found:
                return translated
        raise KeyError(name)

    def to_gguf(self, name: str) -> str | None:
        """The GGUF name of a checkpoint tensor, None where GGUF has none."""
        for table in self._backward:
            found, translated = _look_up(table, name)
            if found and translated is not None and self._leads_back(translated, name):
                return translated
        return None

    def _leads_back(self, gguf: str, checkpoint: str) -> bool:
        """False for a standard name that the plugin has given another meaning."""
        try:
            return self.to_checkpoint(gguf) == checkpoint
        except KeyError:
            return False


def _look_up(table: Mapping[str, str | None], name: str) -> tuple[bool, str | None]:
    match = _FIRST_NUMBER.search(name)
    number = match[0] if match else ""
    template = _FIRST_NUMBER.sub(_BID, name, count=1)
    stem, dot, ending = template.rpartition(".")
    if template in table:
        translated, tail = table[template], ""
    elif ending in ("weight", "bias") and stem in table:
        translated, tail = table[stem], dot + ending
    else:
        return False, None
    return True, None if translated is None else translated.replace(_BID, number) + tail


def checkpoint_names(file: GgufFile, declaration: GgufArchitecture) -> dict[str, str]:
    """GGUF name → checkpoint name of every weight in `file`, in the file's order.

    Raises:
        WeightsMismatch: tensors nobody knows, or two for one checkpoint name; all of them are listed.
    """
    names = GgufNames(declaration)
    translated: dict[str, str] = {}
    owners: dict[str, str] = {}
    unknown, doubled = [], []
    for name in file.tensors:
        try:
            checkpoint = names.to_checkpoint(name)
        except KeyError:
            unknown.append(f"{name[:64]}: unknown")
            continue
        if checkpoint is None:
            continue
        if checkpoint in owners:
            doubled.append(f"{name[:64]}: {checkpoint} already comes from {owners[checkpoint][:64]}")
        owners[checkpoint] = name
        translated[name] = checkpoint
    if unknown or doubled:
        raise WeightsMismatch(
            f"{len(unknown) + len(doubled)} tensors of {file.path.name} do not fit {declaration.architecture}",
            details=unknown + doubled,
            fix="the plugin's GgufArchitecture.tensors must name them (None: not a weight)",
        )
    return translated
