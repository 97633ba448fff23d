"""`VocabParallelEmbedding` and `ParallelLMHead`: the vocabulary, split among tensor-parallel ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bestiary.api.errors import WeightsMismatch

from .parallel import (
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_reduce,
)
from .quant.base import QuantizationConfig, QuantizeMethodBase, UnquantizedLinearMethod, method_for
from .quant.packed import pack_weight
from .quant.params import step_of
from .weights.fill import ShardId, count_filled, fill, set_weight_attrs

DEFAULT_VOCAB_PADDING_SIZE = 64


class VocabParallelEmbedding(nn.Module):
    """Token embeddings ``[vocabulary, embedding_dim]``; each rank holds an equal run of rows.

    Any vocabulary size works: with several ranks the rows are padded to a multiple of `padding_size` per rank, with
    zeros. Ids of other ranks contribute zero, and the ranks' results are summed.

    Attributes:
        org_vocab_size: rows the checkpoint has. num_embeddings_per_partition: rows this rank holds, padding included.
        vocab_start, vocab_end: this rank's real rows.
    """

    weight: nn.Parameter

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        params_dtype: torch.dtype | None = None,
        org_num_embeddings: int | None = None,
        padding_size: int = DEFAULT_VOCAB_PADDING_SIZE,
        quant_config: Any = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.layer_name = ""
        self.num_embeddings = num_embeddings
        self.org_vocab_size = org_num_embeddings or num_embeddings
        self.embedding_dim = embedding_dim
        self.tp_size = get_tensor_model_parallel_world_size()
        self.tp_rank = get_tensor_model_parallel_rank()
        self.num_embeddings_per_partition = _rows_per_rank(num_embeddings, self.tp_size, padding_size)
        self.vocab_start = min(self.tp_rank * self.num_embeddings_per_partition, self.org_vocab_size)
        self.vocab_end = min(self.vocab_start + self.num_embeddings_per_partition, self.org_vocab_size)
        self.params_dtype = params_dtype or torch.get_default_dtype()
        self.quant_method: QuantizeMethodBase = UnquantizedLinearMethod()
        self._create_weights()

    def place(self, quant_config: QuantizationConfig | None) -> None:
        """Take the layout `quant_config` prescribes for this layer, by its full name."""
        method = method_for(self, quant_config, self.layer_name)
        if not isinstance(method, UnquantizedLinearMethod):
            del self.weight
            self.quant_method = method
            self._create_weights()

    def finish(self) -> None:
        self.quant_method.process_weights_after_loading(self)

    def _create_weights(self) -> None:
        self.quant_method.create_weights(
            self,
            self.embedding_dim,
            [self.num_embeddings_per_partition],
            self.embedding_dim,
            self.num_embeddings,
            self.params_dtype,
            weight_loader=self.weight_loader,
        )

    def weight_loader(self, param: nn.Parameter, loaded_weight: torch.Tensor, shard_id: ShardId = None) -> None:
        """Copy this rank's rows; padding rows become zero."""
        if getattr(param, "output_dim", None) is None or (step_of(param) != 1 and self.tp_size == 1):
            fill(param, param.data, loaded_weight)
            return
        if loaded_weight.shape[:1] != (self.org_vocab_size,):
            raise WeightsMismatch(
                f"expected {self.org_vocab_size} rows, the checkpoint has shape {list(loaded_weight.shape)}",
                limit=self.org_vocab_size,
                value=list(loaded_weight.shape),
            )
        rows = self.vocab_end - self.vocab_start
        fill(param, param.data[:rows], loaded_weight[self.vocab_start : self.vocab_end])
        param.data[rows:].zero_()
        count_filled(param, param.data[rows:])

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Ids of any shape ``[...]`` → ``[..., embedding_dim]``."""
        if self.tp_size == 1:
            return self.quant_method.embedding(self, input_ids)
        outside = (input_ids < self.vocab_start) | (input_ids >= self.vocab_end)
        local = (input_ids - self.vocab_start).masked_fill(outside, 0)
        found = self.quant_method.embedding(self, local).masked_fill(outside.unsqueeze(-1), 0)
        return tensor_model_parallel_all_reduce(found)

    def extra_repr(self) -> str:
        return f"rows={self.num_embeddings_per_partition} of {self.org_vocab_size}, dim={self.embedding_dim}"


class ParallelLMHead(VocabParallelEmbedding):
    """The output projection, split as the embedding is; called by `LogitsProcessor`, never by itself."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        bias: bool = False,
        params_dtype: torch.dtype | None = None,
        org_num_embeddings: int | None = None,
        padding_size: int = DEFAULT_VOCAB_PADDING_SIZE,
        quant_config: Any = None,
        prefix: str = "",
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, params_dtype, org_num_embeddings, padding_size)
        self.bias: nn.Parameter | None = None
        if bias:
            made = torch.empty(self.num_embeddings_per_partition, dtype=self.params_dtype, device="meta")
            self.bias = nn.Parameter(made, requires_grad=False)
            set_weight_attrs(self.bias, {"output_dim": 0, "weight_loader": self.weight_loader})

    def tie_weights(self, embed_tokens: VocabParallelEmbedding) -> ParallelLMHead:
        """Use the embedding's weight, whatever layout the placement walk gives it."""
        self.tied_to = (embed_tokens,)  # in a tuple, so that it is not registered as a child
        self.weight = embed_tokens.weight
        return self

    def place(self, quant_config: QuantizationConfig | None) -> None:
        if hasattr(self, "tied_to"):
            self._share()
        else:
            super().place(quant_config)

    def _share(self) -> None:
        """Have what the embedding has."""
        table = self.tied_to[0]
        self.quant_method = table.quant_method
        self._parameters.update(table._parameters)

    def finish(self) -> None:
        if hasattr(self, "tied_to"):
            self._share()
        else:
            super().finish()
        pack_weight(self)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        raise TypeError("ParallelLMHead is called through LogitsProcessor(lm_head, hidden_states)")


def _rows_per_rank(rows: int, ranks: int, padding: int) -> int:
    if ranks == 1:
        return rows
    per_rank = -(-rows // ranks)
    return -(-per_rank // padding) * padding
