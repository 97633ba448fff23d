"""Adapters: with one for every layer, the model equals the checkpoint into which it was merged by hand."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from bestiary.api.conformance import claims
from bestiary.api.errors import UsageError
from bestiary.api.lora import LoRARequest
from bestiary.api.registry import ModelRegistry
from bestiary.nn.lora import AdapterSlots
from bestiary.testing.adapters import RANK, change_of, random_adapter, write_adapter
from bestiary.testing.base import ContractBase
from bestiary.testing.check import check
from bestiary.testing.compare import ATOL, require_close, require_same_answers
from bestiary.testing.failures import ContractFailure
from bestiary.testing.ranks import Ranks

_NAME = "kit"
_LAYOUTS: Mapping[str, Mapping[str, int]] = {
    "TP 2": {"tensor_parallel_size": 2},
    "PP 2": {"pipeline_parallel_size": 2},
}
_STACKED = ("gate_up_proj", "down_proj")
_CAUSES = [
    "a product made past the layer: call the linear layer, never its weight",
    "a layer that is called with other rows than the step's tokens",
    "two projections of one shape exchanged in packed_modules_mapping",
]


class LoraChecks(ContractBase):
    """`lora`."""

    @classmethod
    def why_not(cls, name: str) -> str | None:
        if name == "lora" and not claims(ModelRegistry.resolve([cls.architecture]), "supports_lora"):
            return "the class does not claim SupportsLoRA"
        return super().why_not(name)

    @check()
    def test_lora(self) -> None:
        """An adapter on every layer equals its weights merged into the checkpoint, in a batch and among ranks."""
        llm = self.bench.fresh_llm(enable_lora=True, max_loras=1, max_lora_rank=2 * RANK)
        slots = _slots(self.bench.runner(llm).adapters)
        stored = self.bench.tensors()
        weights, tables = _targets(stored, slots)
        adapter = random_adapter(weights, tables)
        folder = self.bench.folder / "lora"
        known = llm.add_lora(LoRARequest(_NAME, lora_path=write_adapter(folder / "adapter", adapter)))
        merged = _merge(self.bench.checkpoint(), folder / "merged", stored, weights, adapter)
        oracle = self.bench.llm(merged)
        prompts = self.bench.prompts()
        both = [each for ids in prompts for each in (ids, ids)]
        got = self.bench.generate(both, llm, adapters=[None, _NAME] * len(prompts))
        ids = prompts[-1]
        want = self.bench.logits(ids, oracle)
        require_close(
            self.bench.logits(ids, llm, lora_id=known.lora_id), want, ATOL,
            "an adapter does not equal its weights merged into the checkpoint",
            where=f"prompt of {len(ids)} tokens", likely=_CAUSES,
        )  # fmt: skip
        what = "requests with an adapter, beside others without, do not equal those of the merged checkpoint"
        require_same_answers(got[1::2], self.bench.generate(prompts, oracle), what, _CAUSES)
        what = "requests without an adapter are changed by others that have one"
        require_same_answers(got[::2], self.bench.generate(prompts), what, _CAUSES)
        llm.close()
        for layout, options in _LAYOUTS.items():
            got_by_ranks = self._by_ranks(ids, known.path, options)
            if got_by_ranks is not None:
                what = f"an adapter among ranks ({layout}) does not equal its weights merged into the checkpoint"
                require_close(got_by_ranks, want, ATOL, what, where=f"prompt of {len(ids)} tokens", likely=_CAUSES)
        self.bench.drop(merged)

    def _by_ranks(self, ids: Sequence[int], path: str, options: Mapping[str, Any]) -> torch.Tensor | None:
        """Logits with the adapter, of a model divided among ranks; None where it cannot be divided like this."""
        if "pipeline_parallel_size" in options and not claims(
            ModelRegistry.resolve([self.architecture]), "supports_pp"
        ):
            return None
        try:
            ranks = Ranks(self.bench.checkpoint(), enable_lora=True, max_lora_rank=2 * RANK, **options)
        except UsageError:  # `tensor_parallel` and `pipeline` say it
            return None
        with ranks:
            return ranks.prompt_logits(ids, lora_id=ranks.add_adapter(_NAME, path))


def _slots(adapters: object) -> AdapterSlots:
    slots = getattr(adapters, "slots", None)
    if not isinstance(slots, AdapterSlots):
        raise TypeError("an engine with slots for adapters is wanted")
    return slots


def _targets(stored: Mapping[str, torch.Tensor], slots: AdapterSlots) -> tuple[dict[str, torch.Tensor], set[str]]:
    """The checkpoint's matrices that adapters can change, by the name that an adapter has for them; and which are
    embeddings. One that is the head as well is left out: merging would change the head, which its adapter does not.

    Raises:
        ContractFailure: layers whose weights no name in the checkpoint leads to.
    """
    weights, tables = {}, set()
    heads: list[Any] = [layer for layer in slots.layers.values() if hasattr(layer, "tied_to")]
    tied = [*heads, *(each for head in heads for each in head.tied_to)]
    left = {name: layer for name, layer in slots.layers.items() if layer not in tied}
    for name, tensor in stored.items():
        owner, _, last = name.rpartition(".")
        stacked = tensor.dim() == 3 and last in _STACKED
        layer = slots.target(owner) if stacked or (tensor.dim() == 2 and last == "weight") else None
        if layer is None or layer in tied or not tensor.is_floating_point():
            continue
        weights[name if stacked else owner] = tensor
        left = {other: each for other, each in left.items() if each is not layer}
        if slots.is_embedding(owner):
            tables.add(owner)
    if left:
        raise ContractFailure(
            f"{len(left)} layer(s) have no weight in the checkpoint by whose name an adapter could change them",
            details=sorted(left),
            likely=[
                "an own load_weights renames tensors: adapters know only hf_to_vllm_mapper and packed_modules_mapping",
                "adapters are not meant for these layers: name them in lora_skip_prefixes",
            ],
        )
    return weights, tables


def _merge(
    source: Path,
    folder: Path,
    stored: Mapping[str, torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    adapter: Mapping[str, torch.Tensor],
) -> Path:
    """The checkpoint with the adapter's change added to its weights, as a model directory."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = dict(stored)
    for module, weight in weights.items():
        name = module if module in stored else f"{module}.weight"
        changed[name] = weight + change_of(module, weight, adapter).to(weight.dtype)
    save_file({name: tensor.contiguous() for name, tensor in changed.items()}, folder / "model.safetensors")
    shutil.copy(source / "config.json", folder / "config.json")
    return folder
