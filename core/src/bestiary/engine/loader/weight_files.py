"""Which files of a model directory hold its weights.

In this order: `model.safetensors`; the shards that `model.safetensors.index.json` names; a complete numbered set
(``name-00001-of-00003.safetensors``), taken together; the only safetensors file there is; the only GGUF file (or split
set). Several unnumbered safetensors files without an index are an error: which belong together is a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bestiary.api.errors import CorruptWeights, LoadError, PickleRefused, WeightsMismatch

from .config_json import open_regular, parse_json_object
from .safetensors_reader import CONVERT, MAX_HEADER_BYTES, TensorInfo, tensor_index

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.(?P<suffix>safetensors|gguf)")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")


def find_weights(directory: Path) -> tuple[Path, ...]:
    """The files, in order; empty where there are none (`refuse_without_weights` then says why).

    Raises:
        LoadError: the directory holds several sets of weights, or an incomplete one.
    """
    if (directory / SINGLE).exists():
        return (directory / SINGLE,)
    if (directory / INDEX).exists():
        return tuple(directory / name for name in dict.fromkeys(read_weight_map(directory / INDEX).values()))
    for suffix in ("safetensors", "gguf"):
        files = sorted(directory.glob(f"*.{suffix}"))
        if len(files) == 1 and not _NUMBERED.fullmatch(files[0].name):
            return (files[0],)
        if files:
            if not _is_one_set(files):
                raise _ambiguous(directory, files)
            return numbered_set(files[0])
    return ()


def numbered_set(file: Path) -> tuple[Path, ...]:
    """All the parts of the set that `file` belongs to (``model-00001-of-00003.gguf``); `file` itself if it is not one.

    Raises:
        WeightsMismatch: parts are missing.
    """
    match = _NUMBERED.fullmatch(file.name)
    if match is None:
        return (file,)
    parts = int(match["parts"])
    names = [
        f"{match['stem']}-{part:05d}-of-{match['parts']}.{match['suffix']}" for part in range(1, min(parts, 99_999) + 1)
    ]
    files = tuple(file.with_name(name) for name in names)
    missing = [path.name for path in files if not path.exists()]
    if missing or not parts:
        raise WeightsMismatch(
            f"{len(missing)} of {parts} weight files are missing",
            code="MISSING_SHARD",
            field=str(file.parent),
            limit=f"{parts} files",
            value=parts - len(missing),
            details=missing,
            fix="download the rest",
        )
    return files


def read_weight_map(index: Path) -> dict[str, str]:
    """Tensor name → file name, as the index says; file names are plain names beside the index.

    Raises:
        CorruptWeights: no weight map, or a name that leaves the directory.
    """
    with open_regular(index, CorruptWeights) as opened:
        data = opened.read(MAX_HEADER_BYTES + 1)
    if len(data) > MAX_HEADER_BYTES:
        rule = f"at most {MAX_HEADER_BYTES} bytes"
        raise CorruptWeights(f"{index.name} is too large", field=str(index), limit=rule, value=len(data))
    weight_map: Any = parse_json_object(data, name=str(index), error=CorruptWeights).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptWeights(
            f"{index.name} has no weight map", field=f"{index}: weight_map", limit="file names by tensor name"
        )
    for name, file in weight_map.items():
        if not isinstance(file, str) or not is_plain_name(file) or not file.endswith(".safetensors"):
            raise CorruptWeights(
                f"{index.name} names a file that is refused",
                field=f"{index}: weight_map.{name[:80]}",
                limit="a plain .safetensors file name in the same directory",
                value=file,
            )
    return dict(weight_map)


def check_index(index: Path, files: Sequence[Path]) -> dict[str, TensorInfo]:
    """The tensors of the shards, each of them where the index says it is, and no other.

    Raises:
        WeightsMismatch: a shard is missing, or the index and the shards disagree.
    """
    weight_map = read_weight_map(index)
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise WeightsMismatch(
            f"{len(missing)} of {len(files)} weight files are missing",
            code="MISSING_SHARD",
            field=str(index),
            limit="every file the index names",
            value=missing[0],
            details=missing,
            fix="download the rest",
        )
    tensors = tensor_index(files)
    faults = _index_faults(weight_map, tensors)
    if faults:
        rule = "the index and the files hold the same tensors"
        raise WeightsMismatch(f"{index.name} disagrees with the files", field=str(index), limit=rule, details=faults)
    return tensors


def refuse_without_weights(directory: Path) -> LoadError:
    """The error for a directory without usable weights: which pickles lie there instead, if any."""
    pickles = sorted(p.name for p in directory.iterdir() if p.suffix in PICKLES and p.name not in _NOT_WEIGHTS)
    if pickles:
        message = f"{directory.name} holds weights only in a format that can run code"
        return PickleRefused(
            message, field=str(directory), limit="safetensors or GGUF", value=pickles[0], details=pickles, fix=CONVERT
        )
    return LoadError(
        f"{directory.name} holds no weights",
        code="NO_WEIGHTS",
        field=str(directory),
        limit="*.safetensors or *.gguf",
        fix="check the path, or use load_format='dummy' for random weights",
    )


def is_plain_name(name: str) -> bool:
    """A file name that stays in its directory on every system."""
    return bool(name) and name.isprintable() and not set(name) & set("/\\:") and name not in (".", "..")


def _index_faults(weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> list[str]:
    faults = []
    for name, file in weight_map.items():
        found = tensors.get(name)
        if found is None:
            faults.append(f"{name}: not in {file}")
        elif found.file is not None and found.file.name != file:
            faults.append(f"{name}: in {found.file.name}, the index says {file}")
    return faults + [f"{name}: not in the index" for name in tensors if name not in weight_map]


def _is_one_set(files: Sequence[Path]) -> bool:
    matches = [_NUMBERED.fullmatch(file.name) for file in files]
    return len({match and (match["stem"], match["parts"]) for match in matches}) == 1 and None not in matches


def _ambiguous(directory: Path, files: Sequence[Path]) -> LoadError:
    return LoadError(
        f"{directory.name} holds {len(files)} weight files and no index says which belong together",
        code="AMBIGUOUS_WEIGHTS",
        field=str(directory),
        limit=f"{SINGLE}, {INDEX}, one numbered set, or one file",
        value=files[0].name,
        details=[file.name for file in files],
        fix="name one file, or add the index",
    )
