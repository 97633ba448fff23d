"""What the machine allows: bytes that must be read, operations that must be done, and the time both take at least.

A step reads every weight once, whatever its batch, and the keys and values of every token it looks back on; of experts
those that its tokens choose, reckoned as if each choice were equally likely. The limit is the slower of the two rates
(the roofline model, Williams et al., doi 10.1145/1498765.1498785).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from bestiary.engine.model_layers import attention_layers, kv_cache_specs
from bestiary.nn import FusedMoE
from bestiary.nn.embedding import ParallelLMHead, VocabParallelEmbedding
from bestiary.nn.weights.fill import num_weights

from .hardware import Hardware


@dataclass(frozen=True, slots=True)
class ModelCost:
    """What one model needs.

    Attributes:
        weight_bytes: read by each step: all parameters but experts'; an embedding table's only where it is the head.
        kv_bytes: kept for each token, and read back for it by each later step of its request.
        body_weights: elements multiplied with every token. head_weights: with every token that yields logits.
        attention_width: sum over layers of heads × head size.
        expert_bytes, expert_weights: of all experts. chosen: the share of them that a token goes through.
    """

    weight_bytes: int
    kv_bytes: int
    body_weights: int
    head_weights: int
    attention_width: int
    expert_bytes: int = 0
    expert_weights: int = 0
    chosen: float = 0.0

    @property
    def token_weights(self) -> float:
        """Elements multiplied with every token, its experts' included, the head's not."""
        return self.body_weights + self.chosen * self.expert_weights

    def read_bytes(self, tokens: int) -> float:
        """Weights read by a step of so many tokens: of experts the share that any of them is expected to choose."""
        return self.weight_bytes + self.expert_bytes * (1 - (1 - self.chosen) ** tokens)

    def prompt_flops(self, length: int) -> float:
        """Operations from a prompt to its last token's logits: products, and causal attention (q·k and p·v)."""
        pairs = length * (length + 1) // 2
        return 2 * (self.token_weights * length + self.head_weights) + 4 * self.attention_width * pairs

    def step_bytes(self, contexts: Sequence[int]) -> float:
        """Read by one decode step of requests that have `contexts` tokens each."""
        return self.read_bytes(len(contexts)) + self.kv_bytes * sum(contexts)

    def step_flops(self, contexts: Sequence[int]) -> float:
        products = 2 * (self.token_weights + self.head_weights) * len(contexts)
        return products + 4 * self.attention_width * sum(contexts)


def model_cost(model: nn.Module) -> ModelCost:
    """Asked of a loaded model."""
    counted: dict[int, int] = {}
    body = head = 0
    mixtures = [module for module in model.modules() if isinstance(module, FusedMoE)]
    for module in model.modules():
        if isinstance(module, FusedMoE) or _only_looked_up(module):
            continue
        for parameter in module.parameters(recurse=False):
            counted[id(parameter)] = parameter.numel() * parameter.element_size()
            if _is_matrix(parameter) and isinstance(module, ParallelLMHead):
                head += num_weights(parameter)
            elif _is_matrix(parameter):
                body += num_weights(parameter)
    layers = attention_layers(model).values()
    experts = sum(_matrices(each) for each in mixtures)
    return ModelCost(
        weight_bytes=sum(counted.values()),
        kv_bytes=sum(spec.bytes_per_token for spec in kv_cache_specs(model).values()),
        body_weights=body,
        head_weights=head,
        attention_width=sum(layer.spec.num_heads * layer.spec.head_size for layer in layers),
        expert_bytes=sum(param.nbytes for each in mixtures for param in each.parameters(recurse=False)),
        expert_weights=experts,
        chosen=sum(_matrices(each) * each.top_k / each.num_experts for each in mixtures) / experts if experts else 0.0,
    )


def _only_looked_up(module: nn.Module) -> bool:
    return isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)


def _matrices(mixture: FusedMoE) -> int:
    """Elements of all its experts' matrices."""
    return sum(num_weights(param) for param in mixture.parameters(recurse=False) if _is_matrix(param, 2))


def _is_matrix(parameter: nn.Parameter, dimensions: int = 1) -> bool:
    """Whether it stands for matrices: by its dimensions, or since it says for how many weights."""
    return parameter.dim() > dimensions or hasattr(parameter, "num_weights")


@dataclass(frozen=True, slots=True)
class Limits:
    """The best a machine can do with a model."""

    cost: ModelCost
    hardware: Hardware

    def prefill_seconds(self, length: int) -> float:
        return self._seconds(self.cost.read_bytes(length), self.cost.prompt_flops(length))

    def decode_seconds(self, contexts: Sequence[int]) -> float:
        """One step that computes one token for each of the requests."""
        return self._seconds(self.cost.step_bytes(contexts), self.cost.step_flops(contexts))

    def prefill_tok_s(self, length: int) -> float:
        return length / self.prefill_seconds(length)

    def decode_tok_s(self, input_len: int, output_len: int) -> float:
        """One request's tokens after the first, over the contexts it goes through."""
        contexts = range(input_len + 1, input_len + output_len)
        return len(contexts) / sum(self.decode_seconds([each]) for each in contexts)

    def output_tok_s(self, input_lens: Sequence[int], output_len: int) -> float:
        """Requests that arrive together: their prompts at the machine's best, then all of them a token a step."""
        prefill = sum(self.cost.prompt_flops(length) for length in input_lens)
        seconds = self._seconds(self.cost.read_bytes(sum(input_lens)), prefill)
        for step in range(1, output_len):
            seconds += self.decode_seconds([length + step for length in input_lens])
        return len(input_lens) * output_len / seconds

    def _seconds(self, size: float, operations: float) -> float:
        return max(size / self.hardware.bytes_per_s, operations / self.hardware.flops)

    def as_dict(self) -> dict[str, Any]:
        return {
            "weight_bytes_per_step": self.cost.weight_bytes,
            "expert_bytes": self.cost.expert_bytes,
            "experts_chosen": self.cost.chosen,
            "kv_bytes_per_token": self.cost.kv_bytes,
        }
