"""Which attention backend runs a model: chosen once, when an engine starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from bestiary.api.errors import UsageError

from .backend import SPECIAL, AttentionBackend, AttentionSpec
from .deterministic import DeterministicBackend
from .flashinfer import FlashInferBackend
from .reference import ReferenceBackend
from .sdpa import TorchBackend
from .triton import TritonBackend, TritonExactBackend
from .varlen import VarlenBackend

_OWN = (TritonBackend(), TritonExactBackend(), TorchBackend(), DeterministicBackend(), ReferenceBackend())
BACKENDS: dict[str, AttentionBackend] = {each.name: each for each in _OWN}
"""Those whose kernels core brings."""
BY_NAME: dict[str, AttentionBackend] = {each.name: each for each in (VarlenBackend(), FlashInferBackend())}
"""Other libraries' kernels, which nobody gets who does not ask for them."""

_AUTOMATIC = ("triton", "torch", "reference")
_EXACT = ("triton_exact", "deterministic")
_IN_WORDS = {
    "attention_chunk_size": "attention within chunks",
    "latent": "latent attention",
    "sink_len": "keys before a sequence's own",
}


def choose_backend(
    wanted: str | None,
    device: str,
    specs: Iterable[AttentionSpec],
    offered: Mapping[str, AttentionBackend] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    deterministic: bool = False,
) -> AttentionBackend:
    """The backend that runs all of `specs` on `device`.

    Args:
        wanted: a name; None takes the first that can, of the `offered` ones in their order, then of core's own;
            never one of those `BY_NAME`.
        offered: backends of installed packages; core's own may be among them, and keep their own order.
        dtype: of queries, keys and values. deterministic: only those that say so of themselves are taken by themselves.

    Raises:
        UsageError: the wanted one is unknown or cannot run here, or none can; with each one's reasons.
    """
    known = {**(offered or {}), **BACKENDS, **BY_NAME}
    if wanted is not None and wanted not in known:
        raise UsageError(
            "there is no such attention backend",
            field="attention_backend",
            value=wanted,
            limit=f"one of {', '.join(sorted(known))}",
        )
    foreign = [name for name in offered or {} if name not in BACKENDS and name not in BY_NAME]
    automatic = _EXACT if deterministic else _AUTOMATIC
    names = [wanted] if wanted is not None else [*foreign, *automatic]
    if deterministic and wanted is None:
        names = [name for name in names if getattr(known[name], "deterministic", False)]
    distinct = list(dict.fromkeys(specs))
    reasons = []
    for name in names:
        refused = [reason for spec in distinct if (reason := why_not_layer(known[name], device, spec))]
        refused += _dtype_refused(known[name], dtype)
        if not refused:
            return known[name]
        reasons += [f"{name}: {reason}" for reason in dict.fromkeys(refused)]
    raise UsageError(
        f"no attention backend can run this model on {device}" if wanted is None else f"{wanted} cannot run this model",
        field="attention_backend",
        value=wanted,
        details=reasons,
        fix="leave attention_backend unset to have one chosen" if wanted is not None else None,
    )


def why_not_layer(backend: AttentionBackend, device: str, spec: AttentionSpec) -> str | None:
    """`backend.why_not`, and the reason where a layer sets a field that the backend does not say it takes."""
    takes = getattr(backend, "takes", ())
    unknown = [name for name in SPECIAL if getattr(spec, name) and name not in takes]
    return backend.why_not(device, spec) or (f"has no {_IN_WORDS[unknown[0]]}" if unknown else None)


def _dtype_refused(backend: AttentionBackend, dtype: torch.dtype) -> list[str]:
    """Why not, where a backend names the dtypes that it takes."""
    dtypes: tuple[torch.dtype, ...] | None = getattr(backend, "dtypes", None)
    if dtypes is None or dtype in dtypes:
        return []
    return [f"takes {', '.join(str(each).removeprefix('torch.') for each in dtypes)}"]
