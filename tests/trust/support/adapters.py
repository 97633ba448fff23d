"""LoRA adapters for T0, written by hand in PEFT's format: random factors, large enough to change answers."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPES = {
    "self_attn.q_proj": (64, 64), "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64), "mlp.down_proj": (64, 96),
}  # fmt: skip
"""Of T0's projections: outputs, inputs."""


def write_adapter(folder: Path, seed: int, *, rank: int = 4, layers: int = 2) -> Path:
    """Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    config["target_modules"] = [name.rpartition(".")[2] for name in SHAPES]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    draw, tensors = torch.Generator().manual_seed(seed), {}
    for layer in range(layers):
        for name, (outputs, inputs) in SHAPES.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, inputs, generator=draw) * 0.1
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(outputs, rank, generator=draw) * 0.1
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def write_adapters(root: Path, names: str = "abc") -> dict[str, str]:
    """Several different ones: name → directory."""
    return {name: str(write_adapter(root / name, seed)) for seed, name in enumerate(names)}
