"""Every tensor of the checkpoint arrives, every parameter is filled, and a wrong checkpoint is an error."""

from __future__ import annotations

import fnmatch
import json
import logging
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from bestiary.api.errors import WeightsMismatch
from bestiary.nn.weights import load_complete
from bestiary.testing.base import ContractBase
from bestiary.testing.check import check
from bestiary.testing.failures import ContractFailure

Tensors = Mapping[str, torch.Tensor]
_SHARDS = 4


class WeightsChecks(ContractBase):
    """`weights_complete`, `weights_missing`, `weights_unknown`, `weights_sharded`, `weights_renamed`, `save_load`."""

    @classmethod
    def why_not(cls, name: str) -> str | None:
        if name == "weights_renamed" and not cls.other_names:
            return "the contract states no other_names"
        return super().why_not(name)

    @check()
    def test_weights_complete(self) -> None:
        """Every tensor of the checkpoint is used, and every parameter filled."""
        with _warnings() as said:
            self._load(self.bench.tensors())
        if said:
            raise ContractFailure(
                "loading leaves tensors out",
                details=said,
                likely=["load_weights passes a tensor over; name in skip_prefixes what is left out on purpose"],
            )

    @check()
    def test_weights_missing(self) -> None:
        """Leaving out any tensor of the checkpoint is an error."""
        stored = self.bench.tensors()
        kept = []
        for pattern, name in _one_of_each(stored).items():
            if any(fnmatch.fnmatch(name, optional) for optional in self.optional_weights):
                continue
            with _warnings():
                refused = _refused(self, {other: tensor for other, tensor in stored.items() if other != name})
            if not refused:
                kept.append(f"{name} {list(stored[name].shape)} (one of {pattern})")
        if kept:
            raise ContractFailure(
                f"{len(kept)} tensor(s) can be missing without an error",
                details=kept,
                likely=[
                    "load_weights says it filled what it did not, or fills it by itself",
                    "a parameter that the model never made, so that its tensor is skipped",
                    "the tensor is optional by design: name it in optional_weights",
                ],
            )

    @check()
    def test_weights_unknown(self) -> None:
        """A tensor that the model has no use for is an error."""
        stored = dict(self.bench.tensors())
        deep = max(stored, key=lambda name: name.count("."))
        passed = []
        for name in ("nobody_knows.weight", f"{deep.rpartition('.')[0]}.nobody_knows", f"{deep}_scale_of_nobody"):
            with _warnings() as said:
                refused = _refused(self, {**stored, name: torch.ones(3)})
            if not refused:
                passed.append(f"{name}: {'; '.join(said) or 'loaded without a word'}")
        if passed:
            raise ContractFailure(
                "tensors that no model has are accepted",
                details=passed,
                likely=["load_weights skips names it does not know: hand them on to AutoWeightsLoader, which refuses"],
            )

    @check()
    def test_weights_sharded(self) -> None:
        """The same tensors in several files and another order load the same, bit for bit."""
        folder = self.bench.folder / "sharded"
        _write_shards(self.bench.tensors(), self.bench.checkpoint(), folder)
        ids = self.bench.prompts()[2]
        want = self.bench.logits(ids)
        got = self.bench.logits(ids, self.bench.llm(folder))
        self.bench.drop(folder)
        if not torch.equal(got, want):
            raise ContractFailure(
                f"the checkpoint in {_SHARDS} files gives other logits than in one",
                got=f"{float((got - want).abs().max()):.3g} off",
                likely=["load_weights depends on the order in which tensors come"],
            )

    @check()
    def test_weights_renamed(self) -> None:
        """The same tensors under the other names that checkpoints have for them load the same, bit for bit."""
        stored = self.bench.tensors()
        want = self._load(stored).state_dict()
        for spelling, (pattern, replacement) in self.other_names.items():
            renamed = {re.sub(pattern, replacement, name): tensor for name, tensor in stored.items()}
            if renamed.keys() == stored.keys():
                raise ContractFailure(f"other_names[{spelling!r}]: {pattern!r} fits no tensor of the checkpoint")
            got = self._load(renamed).state_dict()
            wrong = [name for name, tensor in want.items() if not torch.equal(got[name], tensor)]
            if wrong:
                raise ContractFailure(
                    f"weights differ under other names: {spelling}",
                    details=wrong,
                    likely=["hf_to_vllm_mapper renames one tensor into another's name"],
                )

    @check()
    def test_save_load(self) -> None:
        """Every single number of the checkpoint arrives, so that it could be saved again from the loaded model.

        The checkpoint is loaded with the numbers replaced by 0, 1, 2 …; each must be found in some parameter. A loader
        that fills every parameter from a part of a tensor drops the rest, and nothing else would notice.
        """
        stored = {name: tensor for name, tensor in self.bench.tensors().items() if tensor.is_floating_point()}
        lost = []
        numbered, start = {}, 0
        for name, tensor in stored.items():
            numbered[name] = torch.arange(start, start + tensor.numel(), dtype=torch.float32).view(tensor.shape)
            start += tensor.numel()
        if start >= 2**24:
            raise ContractFailure(
                "the configuration is too large for this check", got=f"{start} numbers", allowed=2**24
            )
        rest = {name: tensor for name, tensor in self.bench.tensors().items() if name not in stored}
        model = self._load({**numbered, **rest})
        found = torch.zeros(start, dtype=torch.bool)
        for param in model.parameters():
            values = param.detach().flatten().long()
            found[values[(values >= 0) & (values < start)]] = True
        for name, numbers in numbered.items():
            missing = int((~found[numbers.flatten().long()]).sum())
            if missing:
                lost.append(f"{name}: {missing} of {numbers.numel()} numbers do not arrive")
        if lost:
            raise ContractFailure(
                "part of the checkpoint is dropped while loading",
                details=lost,
                likely=[
                    "load_weights cuts a slice out of a tensor and forgets the rest",
                    "it computes (transposing and cutting are fine): then give this check up and say what it computes",
                ],
            )

    def _load(self, tensors: Tensors) -> nn.Module:
        model, _ = self.bench.build()
        load_complete(model, iter(tensors.items()))
        return model


def _refused(contract: WeightsChecks, tensors: Tensors) -> bool:
    try:
        contract._load(tensors)
    except WeightsMismatch:
        return True
    except (KeyError, ValueError, RuntimeError, AttributeError, TypeError):
        return True  # a loader of the author's own that trips over it; the engine turns that into an error too
    return False


def _one_of_each(names: Iterable[str]) -> dict[str, str]:
    """Names with their numbers replaced → the last name of that form."""
    return {re.sub(r"(?<=\.)\d+(?=\.)", "*", name): name for name in names}


def _write_shards(stored: Tensors, source: Path, folder: Path) -> None:
    """The checkpoint in several files with an index, tensors dealt out at random."""
    folder.mkdir(exist_ok=True)
    names = sorted(stored)
    random.Random(5).shuffle(names)
    places = {}
    for number in range(_SHARDS):
        file = f"model-{number + 1:05}-of-{_SHARDS:05}.safetensors"
        mine = names[number::_SHARDS]
        save_file({name: stored[name] for name in mine}, folder / file)
        places.update(dict.fromkeys(mine, file))
    total = sum(tensor.nbytes for tensor in stored.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What Bestiary warns of meanwhile, kept from the screen."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.name == "bestiary":  # the registry, hooks and caches speak of other packages
                said.append(record.getMessage())

    logger, handler = logging.getLogger("bestiary"), Keep(logging.WARNING)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
