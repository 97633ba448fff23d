"""GGUF: names both ways, and files whose model answers as the checkpoint it was written from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file

from bestiary.api.gguf import GgufArchitecture
from bestiary.api.registry import ModelRegistry
from bestiary.engine.loader.gguf_names import GgufNames
from bestiary.engine.loader.gguf_plugins import gguf_declaration
from bestiary.testing.base import BASE, ContractBase
from bestiary.testing.check import check
from bestiary.testing.compare import ATOL, require_close
from bestiary.testing.failures import ContractFailure
from bestiary.testing.gguf_file import (
    Array,
    find_inv_freq,
    merged,
    rounded,
    stored_rows,
    tensor_names,
    write_gguf,
)

BLOCKS = "Q8_0"
_LIKELY = (
    "GgufArchitecture.rope_interleaved: whether the file's rotary rows are put back into order",
    "GgufArchitecture.qkv_interleaved, and gguf_rows: the same of a fused projection that goes head by head",
    "GgufArchitecture.config: a field that the file says and the declaration does not read",
    "the file as the kit writes it: override gguf_rows or gguf_metadata where llama.cpp's converter does more",
)


class GgufChecks(ContractBase):
    """`gguf_names`, `gguf_file`."""

    @classmethod
    def why_not(cls, name: str) -> str | None:
        if name in ("gguf_names", "gguf_file") and cls.gguf is None:
            return "the contract names no GGUF architecture"
        return super().why_not(name)

    @classmethod
    def parameters(cls) -> dict[str, Sequence[str]]:
        return super().parameters() | {"gguf_case": ["F32", BLOCKS, *cls.gguf_variants]}

    def gguf_metadata(self, writer: Any, config: Any) -> None:
        """Keys beyond the standard ones, added to a `gguf.GGUFWriter`. config: the reference's configuration."""
        return

    def gguf_rows(self, name: str, array: Array, config: Any) -> Array:
        """A checkpoint tensor as a GGUF file stores it: the same numbers, rows in the file's order.

        Experts arrive stacked, under the name without their number.
        """
        return stored_rows(self._architecture, name, array, config)

    @check()
    def test_gguf_names(self) -> None:
        """GGUF tensor names lead to the checkpoint's and back, and are the gguf package's."""
        names = GgufNames(self._declaration())
        oracle = tensor_names(self._architecture, int(self._config(BASE).num_hidden_layers))
        stored = self.bench.tensors()
        mapper = getattr(ModelRegistry.resolve([self.architecture]), "hf_to_vllm_mapper", None)
        loaded_as = str if mapper is None else mapper.map_name  # the file may use the model's own names at once
        problems = []
        for name in merged(stored):
            expected = oracle(name)
            if expected is None:
                problems.append(f"{name}: the gguf package has no name for it")
                continue
            try:
                back = names.to_checkpoint(expected)
            except KeyError:
                back = None
            if back is None or (name in stored and loaded_as(back) != loaded_as(name)):
                problems.append(f"{expected}: leads to {back}, not to {name}")
            elif names.to_gguf(back) != expected:
                problems.append(f"{back}: leads to {names.to_gguf(back)}, not to {expected}")
        if problems:
            raise ContractFailure(
                f"{len(problems)} tensor name(s) of GGUF files are not understood",
                details=problems,
                likely=["GgufArchitecture.tensors lacks or misspells them"],
                look="bestiary.engine.loader.gguf_names has the standard names",
            )

    @check()
    def test_gguf_file(self, gguf_case: str) -> None:
        """A GGUF file gives the logits of the checkpoint it was written from, in F32 and in blocks of Q8_0."""
        variant = gguf_case if gguf_case in self.variants else BASE
        kind = BLOCKS if gguf_case == BLOCKS else "F32"
        model, stored = self.bench.reference(variant), self.bench.tensors(variant)
        path = self.bench.folder / f"{['F32', BLOCKS, *self.gguf_variants].index(gguf_case)}.gguf"
        config = self._config(variant)
        write_gguf(
            path, self._architecture, stored, config, kind=kind, inv_freq=find_inv_freq(model),
            rows=lambda name, array: self.gguf_rows(name, array, config),
            metadata=lambda writer: self.gguf_metadata(writer, config),
        )  # fmt: skip
        exact = None if kind == "F32" else self._rounded(stored, kind)
        for ids in self.bench.prompts(variant)[1:]:
            want = self.bench.expected(ids, variant) if exact is None else self.bench.logits(ids, self.bench.llm(exact))
            got = self.bench.logits(ids, self.bench.llm(path))
            where = f"{gguf_case}, prompt of {len(ids)} tokens"
            require_close(
                got, want, ATOL, "the GGUF file gives other logits than the checkpoint", where=where, likely=_LIKELY
            )
        if exact is not None:
            self._check_kept_blocks(path, self.bench.prompts(variant)[-1])
        for each in (path, exact):
            if each is not None:
                self.bench.drop(each)

    def _check_kept_blocks(self, path: Path, ids: Sequence[int]) -> None:
        """The file's blocks kept in memory give the logits of the same file dequantized."""
        kept = self.bench.llm(path, quantization="gguf")
        config = kept.vllm_config.quant_config
        if config.decoded and not config.kept:
            raise ContractFailure("no layer keeps its blocks", likely=["projections that are no layers of bestiary.nn"])
        got = self.bench.logits(ids, kept)
        want = self.bench.logits(ids, self.bench.llm(path))
        require_close(
            got, want, ATOL, "a GGUF file's blocks, kept in memory, give other logits than the file dequantized",
            where=f"{BLOCKS}, prompt of {len(ids)} tokens",
            likely=[
                "a product made past the layer: call the linear layer, never its weight",
                "a load_weights that computes with weights: blocks can be taken apart by rows only",
            ],
        )  # fmt: skip

    def _rounded(self, stored: Mapping[str, torch.Tensor], kind: str) -> Path:
        """A checkpoint directory with the numbers that a file of blocks holds."""
        folder = self.bench.folder / f"rounded-{kind}"
        folder.mkdir(exist_ok=True)
        save_file(rounded(stored, kind), folder / "model.safetensors")
        (folder / "config.json").write_bytes((self.bench.checkpoint() / "config.json").read_bytes())
        return folder

    @property
    def _architecture(self) -> str:
        """`general.architecture`: all of `gguf`, or what stands before the key that tells a file's kind."""
        return (self.gguf or "").partition(".")[0]

    def _declaration(self) -> GgufArchitecture:
        declaration = gguf_declaration(ModelRegistry, self._architecture, {self.gguf or "": True})
        if declaration.architecture != self.architecture:
            raise ContractFailure(
                f"GGUF files of {self.gguf} are read as another architecture",
                got=declaration.architecture,
                allowed=self.architecture,
                likely=["the contract's gguf, or the declaration's architecture"],
            )
        return declaration

    def _config(self, variant: str) -> Any:
        """The reference's configuration object; for one without, the contract's fields as attributes."""
        found = getattr(self.bench.reference(variant), "config", None)
        return SimpleNamespace(**self.bench.config(variant)) if found is None else found
