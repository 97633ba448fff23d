"""Backend "flashinfer": the paged kernels of the library FlashInfer, for who asks for it by name.

The library plans a step on the host before its kernels run: once a step for each kind of layer. Decode rows go through
its decode wrapper, other sequences through its prefill wrapper.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .backend import AttentionSpec
from .metadata import AttentionMetadata
from .paged import PagedBackend
from .plain import DTYPES, keys_and_values, keys_before, why_not_plain

_WORKSPACE_BYTES = 128 << 20
"""What the library's documentation recommends; wrappers share it, since their kernels run one after another."""
_HEAD_SIZES = (64, 128, 256)
_KERNELS = "fa2"
"""For prompts, of the library's several: those take pages of any strides, and run on every GPU from capability 8.0 on.
Decode wrappers of version 0.2.8 take no such choice; later ones choose for themselves."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Where keys of sequences first … last - 1 of a step lie, as the library wants to know it.

    Attributes:
        query_start, page_start: int32 ``[seqs + 1]`` on the host, cumulative queries and pages.
        pages: int32, every sequence's blocks, on the device. last_page: int32 ``[seqs]`` on the host, tokens there.
    """

    query_start: Tensor
    page_start: Tensor
    pages: Tensor
    last_page: Tensor


@dataclass(slots=True)
class _Wrapper:
    """One of the library's wrappers, and the step that it is planned for."""

    wrapped: Any
    step: object = None


class _Wrappers(threading.local):
    """Each thread's own, by device and by what a plan depends on besides the step: a plan holds until the next."""

    def __init__(self) -> None:
        self._workspaces: dict[torch.device, Tensor] = {}
        self._made: dict[tuple[object, ...], _Wrapper] = {}

    def get(self, key: tuple[object, ...], device: torch.device, make: Callable[[Tensor], Any]) -> _Wrapper:
        found = self._made.get((device, *key))
        if found is None:
            workspace = self._workspaces.get(device)
            if workspace is None:
                workspace = torch.zeros(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)
                self._workspaces[device] = workspace
            found = self._made[device, *key] = _Wrapper(make(workspace))
        return found


class FlashInferBackend(PagedBackend):
    """Decoders' attention with windows and soft caps; plans are made from the host's lengths, so that steps cannot be
    recorded."""

    name = "flashinfer"
    dtypes = DTYPES

    def __init__(self) -> None:
        self._wrappers = _Wrappers()

    def why_not(self, device: str, spec: AttentionSpec) -> str | None:
        if reason := why_not_plain(device, spec):
            return reason
        if spec.head_size not in _HEAD_SIZES:
            return f"for heads of {', '.join(map(str, _HEAD_SIZES))} channels"
        if importlib.util.find_spec("flashinfer") is None:
            return "FlashInfer is not installed: pip install bestiary[flashinfer]"
        return None

    def compute(
        self,
        query: Tensor,
        key: Tensor | None,
        value: Tensor | None,
        kv_cache: Tensor,
        metadata: AttentionMetadata,
        spec: AttentionSpec,
        sinks: Tensor | None,
    ) -> Tensor:
        pairs = keys_and_values(kv_cache, query)
        query = query.contiguous()
        decodes, count = metadata.num_decodes, len(metadata.query_lens_host)
        parts = []
        if decodes:
            parts.append(self._decode(metadata, spec, query).run(query[:decodes], pairs))
        if count > decodes:
            parts.append(self._prefill(metadata, spec, query).run(query[decodes:], pairs))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _decode(self, metadata: AttentionMetadata, spec: AttentionSpec, query: Tensor) -> Any:
        def make(workspace: Tensor) -> Any:
            from flashinfer import BatchDecodeWithPagedKVCacheWrapper as Decode  # type: ignore[import-not-found]

            return Decode(workspace, "NHD", use_tensor_cores=spec.num_heads != spec.num_kv_heads)

        found = self._wrappers.get(("decode", *_kind(spec, query)), query.device, make)
        step = _step(metadata)
        if found.step is not step:
            found.step = None  # until this plan is made, there is none
            at = _pages(metadata, 0, metadata.num_decodes)
            found.wrapped.plan(
                at.page_start, at.pages, at.last_page, spec.num_heads, spec.num_kv_heads, spec.head_size,
                metadata.block_size, **_options(spec, query),
            )  # fmt: skip
            found.step = step
        return found.wrapped

    def _prefill(self, metadata: AttentionMetadata, spec: AttentionSpec, query: Tensor) -> Any:
        def make(workspace: Tensor) -> Any:
            from flashinfer import BatchPrefillWithPagedKVCacheWrapper as Prefill

            return Prefill(workspace, "NHD", backend=_KERNELS)

        found = self._wrappers.get(("prefill", *_kind(spec, query)), query.device, make)
        step = _step(metadata)
        if found.step is not step:
            found.step = None  # until this plan is made, there is none
            at = _pages(metadata, metadata.num_decodes, len(metadata.query_lens_host))
            found.wrapped.plan(
                at.query_start, at.page_start, at.pages, at.last_page, spec.num_heads, spec.num_kv_heads,
                spec.head_size, metadata.block_size, causal=True, **_options(spec, query),
            )  # fmt: skip
            found.step = step
        return found.wrapped


def _kind(spec: AttentionSpec, query: Tensor) -> tuple[object, ...]:
    """Layers that agree in this share a step's plan."""
    shape = spec.num_heads, spec.num_kv_heads, spec.head_size
    return *shape, spec.scale, spec.sliding_window, spec.logits_soft_cap, query.dtype


def _options(spec: AttentionSpec, query: Tensor) -> dict[str, Any]:
    return {
        "sm_scale": spec.scale, "window_left": keys_before(spec), "logits_soft_cap": spec.logits_soft_cap,
        "q_data_type": query.dtype, "kv_data_type": query.dtype,
    }  # fmt: skip


def _step(metadata: AttentionMetadata) -> object:
    """What tells a step from every other one, and dies with it or with the last plan for it."""
    return metadata.derived.setdefault("flashinfer.step", object())


def _pages(metadata: AttentionMetadata, first: int, last: int) -> Pages:
    """Where the keys of some of a step's sequences lie; computed once a step from the lengths that the host has."""
    key = ("flashinfer.pages", first, last)
    held: Pages | None = metadata.derived.get(key)
    if held is None:
        size, tables = metadata.block_size, metadata.block_tables[first:last]
        lengths = metadata.seq_lens_host[first:last]
        counts = [-(-length // size) for length in lengths]
        rows = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        starts = _cumulative(counts)
        within = torch.arange(len(rows)) - starts[rows]
        where = (rows * tables.shape[1] + within).to(tables.device, non_blocking=True)
        held = metadata.derived[key] = Pages(
            query_start=_cumulative(metadata.query_lens_host[first:last]),
            page_start=starts,
            pages=tables.flatten()[where],
            last_page=torch.tensor([(length - 1) % size + 1 for length in lengths], dtype=torch.int32),
        )
    return held


def _cumulative(counts: list[int] | tuple[int, ...]) -> Tensor:
    return torch.tensor([*accumulate(counts, initial=0)], dtype=torch.int32)
