"""Backends "triton" and "triton_exact": core's own kernels for CUDA (`bestiary.nn.triton.attention`)."""

from __future__ import annotations

import torch
from torch import Tensor

from bestiary.nn.triton.available import why_not_device, why_not_fp8

from .backend import AttentionSpec, AttentionType
from .metadata import AttentionMetadata
from .paged import PagedBackend

_MOST_CHANNELS = 256


class TritonBackend(PagedBackend):
    """Decoders' attention; decode steps can be recorded, since nothing is read on the host but shapes.

    Products are computed in the queries' dtype and summed in fp32; an fp8 cache is widened to that dtype first.
    """

    name = "triton"
    reads_pages_only = True
    recordable = True
    deterministic = False
    dtypes = (torch.bfloat16, torch.float16, torch.float32)

    def why_not(self, device: str, spec: AttentionSpec) -> str | None:
        if reason := why_not_device(device):
            return reason
        if spec.attn_type is not AttentionType.DECODER:
            return "for decoders' own attention"
        if spec.head_size > _MOST_CHANNELS:
            return f"for heads of up to {_MOST_CHANNELS} channels"
        return why_not_fp8(device, spec.cache_dtype) or super().why_not(device, spec)

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
        from bestiary.nn.triton.attend import attend

        return attend(query, kv_cache, metadata, spec, sinks, self.deterministic)


class TritonExactBackend(TritonBackend):
    """The same, every row in tiles of one shape and over keys in splits of one size: a row's bits are its own, whether
    it is computed alone, in a batch, as part of a prompt or as one token, as long as all of its sequence's keys and
    values are numbers. Prompts take longer."""

    name = "triton_exact"
    deterministic = True
