"""The tensors of an adapter's directory, by what they are: pairs of factors, and copies of the base's embeddings.

base_model.model.<module>.lora_A.weight            [rank, in]      and lora_B.weight         [out, rank]
base_model.model.<module>.lora_embedding_A         [rank, rows]    and lora_embedding_B      [hidden, rank]
base_model.model.<module>[.base_layer].weight      a copy that PEFT adds where embeddings are targets
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bestiary.api.errors import BadAdapter, LoadError
from bestiary.nn.lora import Piece

from .config_json import open_regular
from .lora_config import CONFIG
from .nonfinite import count_nonfinite
from .safetensors_reader import iterate_safetensors, read_header
from .weight_files import PICKLES

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?:(?P<linear>[AB])\.weight|embedding_(?P<embedding>[AB]))")
_COPY = re.compile(r"(?P<module>.+?)(?:\.base_layer)?\.weight")
_WHY_NOT = {
    "lora_magnitude_vector": "a magnitude (DoRA) is not possible",
    "modules_to_save": "modules trained as a whole are not possible",
    ".bias": "trained biases are not possible",
}
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(slots=True)
class AdapterTensors:
    """pieces: with scale 1. copies: module → weight. Both may be views of the mapped file."""

    pieces: list[Piece] = field(default_factory=list)
    copies: dict[str, torch.Tensor] = field(default_factory=dict)


def adapter_directory(path: str) -> Path:
    """The directory, if it is one that holds an adapter in safetensors.

    Raises:
        BadAdapter: it is not there, or its weights are in a format that could run code.
    """
    directory = Path(path).expanduser()
    if not directory.is_dir():
        raise BadAdapter(
            "there is no such directory", field="lora_path", value=path,
            limit=f"a directory with {CONFIG} and {WEIGHTS}; adapters are not downloaded",
        )  # fmt: skip
    if not (directory / WEIGHTS).exists():
        pickles = sorted(each.name for each in directory.iterdir() if each.suffix in PICKLES)
        raise BadAdapter(
            "its weights are in a format that can run code" if pickles else "it holds no weights",
            field=str(directory), limit=WEIGHTS, details=pickles,
            fix="save it again where you trust it: peft's save_pretrained writes safetensors" if pickles else None,
        )  # fmt: skip
    return directory


def digest_of(directory: Path) -> str:
    """SHA-256 of the two files."""
    found = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with open_regular(directory / name, LoadError) as file:
            own = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]  # typeshed asks for readinto
        found.update(own.digest())
    return found.hexdigest()


def read_adapter_tensors(directory: Path) -> AdapterTensors:
    """Everything in the file, sorted by module.

    Raises:
        BadAdapter: the file is damaged; or a tensor is none of an adapter's, lacks its counterpart, or is no finite
            matrix of floating-point numbers: all such tensors in `details`.
    """
    path = directory / WEIGHTS
    try:
        read_header(path)
        tensors = dict(iterate_safetensors([path]))
    except LoadError as error:
        raise BadAdapter(
            error.message, field=error.field, limit=error.limit, value=error.value, details=error.details, fix=error.fix
        ) from error
    problems: list[str] = []
    found = AdapterTensors()
    factors: dict[tuple[str, bool], dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        problem = _place(name, tensor, factors, found.copies)
        if problem is not None:
            problems.append(f"{name[:256]}: {problem}")
    problems += _pair(factors, found.pieces)
    if not tensors:
        problems.append(f"{WEIGHTS} holds no tensors")
    if problems:
        raise BadAdapter(
            f"{len(problems)} tensor(s) of the adapter are refused", field=str(path), details=sorted(problems)
        )
    return found


def _place(
    name: str,
    tensor: torch.Tensor,
    factors: dict[tuple[str, bool], dict[str, torch.Tensor]],
    copies: dict[str, torch.Tensor],
) -> str | None:
    """Put one tensor where it belongs; the reason where it is refused."""
    if not name.startswith(_PREFIX):
        return f"names begin with {_PREFIX}"
    for part, reason in _WHY_NOT.items():
        if part in name:
            return reason
    if tensor.dim() != 2 or tensor.dtype not in _FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        return f"{kind} {list(tensor.shape)}; factors are matrices of float32, float16 or bfloat16"
    if count := count_nonfinite(tensor):
        return f"{count} NaN or Inf"
    bare = name.removeprefix(_PREFIX)
    match = _FACTOR.fullmatch(bare)
    if match is not None:
        of_embedding = match["embedding"] is not None
        factors.setdefault((match["module"], of_embedding), {})[match["embedding"] or match["linear"]] = tensor
        return None
    copy = _COPY.fullmatch(bare)
    if copy is None or "lora_" in bare:
        return "no factor of an adapter has such a name"
    copies[copy["module"]] = tensor
    return None


def _pair(factors: Mapping[tuple[str, bool], Mapping[str, torch.Tensor]], pieces: list[Piece]) -> list[str]:
    """The factors in pairs; returns what has no counterpart."""
    problems = []
    for (module, of_embedding), found in factors.items():
        missing = {"A", "B"} - found.keys()
        if missing:
            problems.append(f"{module}: its lora_{'embedding_' if of_embedding else ''}{missing.pop()} is missing")
        else:
            pieces.append(Piece(module, found["A"], found["B"], 1.0, of_embedding))
    return problems
