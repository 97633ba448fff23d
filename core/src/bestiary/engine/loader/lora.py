"""`read_adapter`: a PEFT directory, checked against a model and cut for this rank's slots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bestiary.api.errors import BadAdapter, LoadError, WeightsMismatch
from bestiary.api.lora import LoRAInfo
from bestiary.nn.lora import AdapterSlots, Piece, Prepared

from .lora_config import AdapterConfig, read_adapter_config
from .lora_files import adapter_directory, digest_of, read_adapter_tensors


def read_adapter(name: str, path: str, slots: AdapterSlots) -> tuple[LoRAInfo, Prepared]:
    """The adapter in `path`, ready to be put into a slot; no slot is touched.

    Raises:
        BadAdapter: the files are damaged or hostile, ask for what is not possible, or do not fit the model; every
            module that is wrong stands in `details`.
    """
    directory = adapter_directory(path)
    config = read_adapter_config(directory)
    try:
        digest = digest_of(directory)
    except LoadError as error:
        raise BadAdapter(error.message, field=error.field, limit=error.limit, value=error.value) from error
    tensors = read_adapter_tensors(directory)
    problems = [*_untouched_targets(config, tensors.pieces)]
    problems += [
        f"{module}: {reason}"
        for module, weight in tensors.copies.items()
        if (reason := slots.why_no_copy(module, weight)) is not None
    ]
    scaled = [_scaled(piece, config, slots, problems) for piece in tensors.pieces]
    try:
        prepared = slots.prepare(scaled)
    except WeightsMismatch as error:
        problems += error.details
    if problems:
        raise _misfit(name, directory, problems)
    info = LoRAInfo(
        name=name,
        path=path,
        digest=digest,
        rank=max((factors.b.shape[-1] for factors in prepared.values()), default=config.rank),
        target_modules=tuple(sorted({piece.module.rpartition(".")[2] for piece in scaled})),
        num_bytes=sum(factors.a.nbytes + factors.b.nbytes for factors in prepared.values()),
    )
    return info, prepared


def _scaled(piece: Piece, config: AdapterConfig, slots: AdapterSlots, problems: list[str]) -> Piece:
    """The piece with its scale; a rank that the configuration does not name makes the scale a guess."""
    if slots.target(piece.module) is None:
        return piece
    try:
        names = slots.names_of(piece)
    except WeightsMismatch:  # its shapes fit nothing, which `prepare` will say
        return piece
    stated, scale = config.rank_and_scale(names)
    rank, rest = divmod(len(piece.a), slots.experts_in(piece))
    if rest == 0 and rank != stated:
        problems.append(f"{piece.module}: its rank is {rank}, and {stated} by adapter_config.json")
    return piece._replace(scale=scale)


def _untouched_targets(config: AdapterConfig, pieces: Sequence[Piece]) -> list[str]:
    """Listed targets without a tensor: part of the adapter is missing, or it is not what it says."""
    modules = [piece.module for piece in pieces]
    return [
        f"{target[:64]}: a target module without tensors"
        for target in config.targets or ()
        if not any(f".{module}".endswith(f".{target}") for module in modules)
    ]


def _misfit(name: str, directory: Path, problems: list[str]) -> BadAdapter:
    return BadAdapter(
        f"adapter {name} does not fit the model: {len(problems)} problem(s)",
        field=str(directory),
        details=sorted(set(problems)),
        fix="check that it was trained on this model; max_lora_rank= makes room for larger ranks",
    )
