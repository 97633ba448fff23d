"""The reference: a small random model that another implementation computes, and whose numbers hide no mistake.

transformers' class for the `model_type` is the default; it also writes the checkpoint. A contract's own reference is a
module that maps ids ``[1, n]`` to logits ``[1, n, vocabulary]`` (or to something with `.logits`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bestiary.api.errors import UsageError

SEED = 20
SPREAD = 0.2
"""Standard deviation of matrices, and of what is added to norms and biases, which start at one and zero."""
EPSILON = 0.003
"""Of norms, where `config` does not say: large enough for a forgotten one to show."""
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")


def transformers_reference(config: Mapping[str, Any], architecture: str) -> nn.Module:
    """transformers' model for `config`, computed in the plainest way it has.

    Raises:
        UsageError: transformers has no such `model_type`.
    """
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fields = dict(config)
    model_type = fields.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise UsageError(
            "transformers has no model of this type", field="config.model_type", value=model_type,
            fix="define reference(self, config) in the contract: a module from ids [1, n] to logits [1, n, vocabulary]",
        )  # fmt: skip
    made = CONFIG_MAPPING[model_type](**{"initializer_range": SPREAD} | fields)
    for name in _EPSILONS:
        if name not in fields and hasattr(made, name):
            setattr(made, name, EPSILON)
    cls: Any = getattr(transformers, architecture, None) or transformers.AutoModelForCausalLM
    build = getattr(cls, "_from_config", None) or cls.from_config
    with quiet():
        model: nn.Module = build(made, dtype=torch.float32, attn_implementation="eager")
    if hasattr(made, "_experts_implementation"):
        made._experts_implementation = "eager"
    return model


def randomize(model: nn.Module) -> None:
    """Give every weight a value that shows when it is forgotten, swapped or scaled; the same values every time.

    Matrices of almost no spread are drawn anew; whatever has one dimension, and biases, have something added.
    """
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *_stored_buffers(model)]:
            if not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=generator) * SPREAD
            if tensor.dim() < 2 or name.endswith("bias"):
                tensor.add_(noise)
            elif float(tensor.std()) < SPREAD / 4:
                tensor.copy_(noise)


def _stored_buffers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers that a checkpoint holds: a router's correction bias, for one."""
    stored = model.state_dict(keep_vars=True)
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in stored)


@torch.inference_mode()
def reference_logits(model: nn.Module, token_ids: Sequence[int]) -> torch.Tensor:
    """Logits ``[len(token_ids), vocabulary]`` in float32."""
    with quiet():
        answer = model(torch.tensor([list(token_ids)]))
    logits: torch.Tensor = getattr(answer, "logits", answer)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 3 or tuple(logits.shape[:2]) != (1, len(token_ids)):
        shape = list(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UsageError(
            "the reference does not answer with logits", field="reference", value=shape,
            limit=f"[1, {len(token_ids)}, vocabulary] for ids [1, {len(token_ids)}], or an object with .logits",
        )  # fmt: skip
    if not bool(torch.isfinite(logits).all()):
        raise UsageError("the reference's logits are not finite", field="reference", limit="finite numbers")
    return logits[0].float()


def save_reference(model: nn.Module, folder: Path, config: Mapping[str, Any], architecture: str) -> None:
    """Write `model` as a checkpoint directory, by its own `save_pretrained` where it has one."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    own = getattr(model, "save_pretrained", None)
    if own is not None:
        with quiet():
            own(folder)
        data = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    else:
        state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
        save_file(_without_ties(state), folder / "model.safetensors")
        data = dict(config)
    data["architectures"] = [architecture]
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")


def _without_ties(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor once, under its first name: a file holds no tensor twice."""
    kept: dict[int, str] = {}
    for name, tensor in state.items():
        kept.setdefault(tensor.data_ptr(), name)
    return {name: state[name] for name in kept.values()}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the reference's warnings and progress bars, which are none of the author's business."""
    from transformers.utils import logging as transformers_logging

    library = logging.getLogger("transformers")
    level, bars = library.level, transformers_logging.is_progress_bar_enabled()
    library.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        library.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
