"""`open_weights`: a model's files as one stream of `(name, tensor)`, whatever their format.

A stream is described before a byte of it is read, and may be read more than once. Peak memory is one tensor: readers
map files, and nobody here keeps what was handed on.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch

from bestiary.api.errors import LoadError, UsageError, WeightsMismatch

from .dummy import dummy_value
from .nonfinite import count_nonfinite
from .safetensors_reader import TensorInfo, iterate_safetensors, tensor_index
from .source import ModelSource
from .weight_files import INDEX, SINGLE, check_index, refuse_without_weights

NamedTensors = Iterator[tuple[str, torch.Tensor]]
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) after each tensor."""


@dataclass(frozen=True, kw_only=True)
class WeightStream:
    """Weights to be read: what is stored, under checkpoint names, and how to read it.

    Iterating yields each tensor once. A yielded tensor may be a view of a mapped file: it is
    read-only, and copied by whoever keeps it.

    Attributes:
        read_keeping: the same, but that tensors of the given names stay in the format's blocks; None where it has none.
    """

    format: str
    tensors: Mapping[str, TensorInfo]
    read: Callable[[], NamedTensors] = field(repr=False)
    read_keeping: Callable[[Collection[str]], NamedTensors] | None = field(default=None, repr=False)

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def __iter__(self) -> NamedTensors:
        return self.read()

    def keeping(self, names: Collection[str]) -> WeightStream:
        """The stream with these tensors left in their blocks.

        Raises:
            UsageError: the format has no blocks.
        """
        read = self.read_keeping
        if not names or self.format == "dummy":
            return self
        if read is None:
            raise UsageError(
                "weights of this format have no blocks to keep", field="load_format", value=self.format, limit="gguf"
            )
        return replace(self, read=lambda: read(names))


Opener = Callable[[ModelSource, Any], WeightStream]
"""Opens a source; the second argument is the `GgufArchitecture` of a GGUF model, None for others."""


def open_weights(
    source: ModelSource,
    *,
    load_format: str = "auto",
    formats: Mapping[str, Opener] = MappingProxyType({}),
    gguf_declaration: Any = None,
    parameters: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = MappingProxyType({}),
    keep: Collection[str] = frozenset(),
    allow_nonfinite: bool = False,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
) -> WeightStream:
    """The stream of the model's weights, checked for NaN and Inf, its progress reported.

    Args:
        load_format: "auto" (what the files are), "safetensors", "gguf", "dummy", or a name in `formats`.
        formats: what hooks add: name → a function from the source to its stream.
        gguf_declaration: the `GgufArchitecture` of the file's architecture, for GGUF.
        parameters: name → shape and dtype of the model's parameters, for dummy weights.
        keep: names of tensors that stay in GGUF blocks.
        allow_nonfinite: NaN and Inf are then told to `notify` instead of being an error at the end of the stream.

    Raises:
        UsageError: no such format. LoadError: the files are not that format, damaged, or could run code.
    """
    openers: dict[str, Opener] = {
        "safetensors": open_safetensors,
        "gguf": open_gguf,
        "dummy": lambda *_: open_dummy(parameters),
        **formats,
    }
    name = _format_of(source) if load_format == "auto" else load_format
    if name not in openers:
        known = ", ".join(["auto", *sorted(openers)])
        raise UsageError(
            f"unknown load format {name[:64]!r}", field="load_format", limit=f"one of: {known}", value=name
        )
    stored = openers[name](source, gguf_declaration).keeping(keep)
    checked = stored
    if name != "dummy":
        checked = replace(stored, read=lambda: _finite(stored, allow_nonfinite, notify))
    return checked if progress is None else replace(checked, read=lambda: _reported(checked, progress))


def open_safetensors(source: ModelSource, declaration: Any = None) -> WeightStream:
    """Safetensors: one file, or shards checked against their index."""
    files = source.weight_files
    if not files or files[0].suffix != ".safetensors":
        raise refuse_without_weights(source.root)
    index = source.root / INDEX
    indexed = index.exists() and files[0].name != SINGLE
    tensors = check_index(index, files) if indexed else tensor_index(files)
    return WeightStream(format="safetensors", tensors=tensors, read=lambda: iterate_safetensors(files))


def open_gguf(source: ModelSource, declaration: Any) -> WeightStream:
    """GGUF through our own reader: sizes and types are the file's, names the checkpoint's."""
    if source.kind != "gguf" or not source.weight_files:
        raise LoadError("this is no GGUF model", field="load_format", limit="a .gguf file", value=source.name)
    if declaration is None:
        rule = "a package that declares the file's architecture (entry points `bestiary_gguf`)"
        raise LoadError(
            "nothing says how to read this GGUF file", field="gguf_declaration", limit=rule, value=source.name
        )
    reader = importlib.import_module("bestiary.engine.loader.gguf_reader")
    names = importlib.import_module("bestiary.engine.loader.gguf_names")
    decoder = importlib.import_module("bestiary.engine.loader.gguf_weights")
    path = source.weight_files[0]
    file = reader.GgufFile.open(path)
    tensors = {}
    for stored, name in names.checkpoint_names(file, declaration).items():
        tensor = file.tensors[stored]
        tensors[name] = TensorInfo(tuple(tensor.shape), tensor.type.name, tensor.nbytes, path)
    return WeightStream(
        format="gguf",
        tensors=tensors,
        read=lambda: decoder.gguf_tensors(file, declaration),
        read_keeping=lambda names: decoder.gguf_tensors(file, declaration, names),
    )


def open_dummy(parameters: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> WeightStream:
    """Random weights for the parameters, no file touched."""
    tensors = {
        name: TensorInfo(tuple(shape), str(dtype).removeprefix("torch."), torch.Size(shape).numel() * dtype.itemsize)
        for name, (shape, dtype) in parameters.items()
    }
    return WeightStream(
        format="dummy",
        tensors=tensors,
        read=lambda: ((name, dummy_value(name, shape, dtype)) for name, (shape, dtype) in parameters.items()),
    )


def _format_of(source: ModelSource) -> str:
    if not source.weight_files:
        raise refuse_without_weights(source.root)
    return "gguf" if source.kind == "gguf" else "safetensors"


def _finite(
    stream: Iterable[tuple[str, torch.Tensor]], allow: bool, notify: Callable[[str], None] | None
) -> NamedTensors:
    """The stream; at its end, one error (or, where allowed, one line) for every tensor with NaN or Inf."""
    found: dict[str, int] = {}
    for name, tensor in stream:
        count = count_nonfinite(tensor)
        if count:
            found[name] = count
        yield name, tensor
    if not found:
        return
    lines = [f"{name}: {count} NaN or Inf" for name, count in found.items()]
    if allow:
        if notify is not None:
            notify(f"weights hold {sum(found.values())} NaN or Inf, allowed: {'; '.join(lines[:10])}")
        return
    first = next(iter(found))
    raise WeightsMismatch(
        f"{len(found)} weight tensors hold NaN or Inf",
        code="NONFINITE_WEIGHTS",
        field=first,
        limit="finite numbers",
        value=f"{found[first]} NaN or Inf",
        details=lines,
        fix="download the file again, or allow them with --allow-nonfinite",
    )


def _reported(stream: WeightStream, progress: Progress) -> NamedTensors:
    """Stored bytes, counted when the reader of the stream has come back from a tensor."""
    done, total = 0, stream.total_bytes
    progress(0, total)
    for name, tensor in stream:
        yield name, tensor
        del tensor
        done += stream.tensors[name].nbytes if name in stream.tensors else 0
        progress(done, total)
    progress(total, total)
