"""Random adapters in PEFT's format, written without PEFT, and the weights that come of merging one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

RANK = 3
ALPHA = 4.0
SPREAD = 0.15
_PREFIX = "base_model.model."

Tensors = dict[str, torch.Tensor]


def random_adapter(weights: Mapping[str, torch.Tensor], embeddings: Iterable[str] = (), seed: int = 0) -> Tensors:
    """Factors of rank `RANK` for every weight: module → ``[out, in]``, an embedding's ``[rows, hidden]``, or the
    stacked ``[experts, out, in]`` of a parameter ``<module>.gate_up_proj`` or ``<module>.down_proj``."""
    generator = torch.Generator().manual_seed(seed)
    tables, made = set(embeddings), Tensors()

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * SPREAD

    for module, weight in weights.items():
        *experts, outputs, inputs = weight.shape
        count = experts[0] if experts else 1
        a, b = draw(RANK * count, inputs), draw(outputs, RANK * count)
        name = f"{_PREFIX}{module}"
        if module in tables:
            made |= {f"{name}.lora_embedding_A": b.t().contiguous(), f"{name}.lora_embedding_B": a.t().contiguous()}
            continue
        if experts:
            owner, _, parameter = name.rpartition(".")
            name = owner + (".base_layer" if parameter == "gate_up_proj" else "")
        made |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    return made


def change_of(module: str, weight: torch.Tensor, adapter: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What a `random_adapter` adds to a weight that it was made for."""
    name, scale = f"{_PREFIX}{module}", ALPHA / RANK
    if f"{name}.lora_embedding_A" in adapter:
        a, b = adapter[f"{name}.lora_embedding_A"], adapter[f"{name}.lora_embedding_B"]
        return scale * (b @ a).t()
    if weight.dim() == 2:
        return scale * adapter[f"{name}.lora_B.weight"] @ adapter[f"{name}.lora_A.weight"]
    owner, _, parameter = name.rpartition(".")
    name = owner + (".base_layer" if parameter == "gate_up_proj" else "")
    a = adapter[f"{name}.lora_A.weight"].view(len(weight), RANK, -1)
    b = adapter[f"{name}.lora_B.weight"].view(weight.shape[1], RANK, len(weight)).permute(2, 0, 1)
    return scale * b @ a


def adapter_config(adapter: Mapping[str, torch.Tensor], **fields: Any) -> dict[str, Any]:
    """`adapter_config.json` for a `random_adapter`, some `fields` changed."""
    names = {name.removeprefix(_PREFIX).partition(".lora_")[0] for name in adapter}
    return {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": sorted(names),
        "bias": "none",
        **fields,
    }


def write_adapter(folder: Path, adapter: Mapping[str, torch.Tensor], **fields: Any) -> str:
    """The two files of an adapter's directory, which is made; returns its path."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(dict(adapter), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(adapter_config(adapter, **fields)), encoding="utf-8")
    return str(folder)
