"""Experts with all that surrounds them, as vLLM has built them since 0.25."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bestiary.api.errors import ConfigError

from .experts import ROUTED, Experts
from .gate import first
from .settings import experts_settings


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What stands around routed experts. The modules belong to the model file, which has registered them.

    Attributes:
        gate: makes the logits; without one `answer` is given them.
        shared_experts: a layer whose answer is added for every token, weighted by ``sigmoid(shared_expert_gate(x))``
            where there is such a gate. Its own answer must not be reduced over ranks: the sum is.
        routed_input_transform, routed_output_transform: what the routed experts work between.
        scale: of the routed experts' answer.
    """

    gate: nn.Module | None = None
    shared_experts: nn.Module | None = None
    shared_expert_gate: nn.Module | None = None
    routed_input_transform: nn.Module | None = None
    routed_output_transform: nn.Module | None = None
    scale: float = 1.0

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Surroundings:
        """Take what surrounds experts out of a layer's keyword arguments; a factor of the answer, too."""
        names = (
            "gate", "shared_experts", "shared_expert_gate", "routed_input_transform", "routed_output_transform"
        )  # fmt: skip
        found = {name: options.pop(name, None) for name in names}
        after = options.pop("apply_routed_scale_to_output", False)
        return cls(**found, scale=options.pop("routed_scaling_factor", 1.0) if after else 1.0)

    def answer(
        self, experts: Experts, hidden_states: torch.Tensor, router_logits: torch.Tensor | None, reduce: bool
    ) -> torch.Tensor:
        """``[tokens, hidden]`` → ``[tokens, hidden]``; under `reduce` the sum over ranks.

        `router_logits` ``[tokens, experts]`` are not looked at where there is a gate."""
        if self.gate is not None:
            router_logits = first(self.gate(hidden_states))
        if router_logits is None:
            raise ConfigError("these experts have no gate, and were given no logits", field="router_logits")
        before, after = self.routed_input_transform, self.routed_output_transform
        inner = hidden_states if before is None else first(before(hidden_states))
        output = experts.combine(inner, *experts.route(inner, router_logits))
        if after is not None:  # it need not be linear: its input is the sum
            output = first(after(_reduced(experts, output, reduce)))
        output = output if self.scale == 1.0 else output * self.scale
        shared = self.shared(hidden_states)
        if after is not None:
            return output if shared is None else output + _reduced(experts, shared, reduce)
        return _reduced(experts, output if shared is None else output + shared, reduce)

    def shared(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """What the shared experts say."""
        if self.shared_experts is None:
            return None
        output = first(self.shared_experts(hidden_states))
        gate = self.shared_expert_gate
        return output if gate is None else output * torch.sigmoid(first(gate(hidden_states)))


def _reduced(experts: Experts, output: torch.Tensor, wanted: bool) -> torch.Tensor:
    return experts.group.all_reduce(output) if wanted and experts.group.world_size > 1 else output


class RoutedExperts(Experts):
    """The part of a `MoERunner` that has parameters; what derives from it may bring a loader of its own.

    In vLLM it is made by the factory, with arguments that are its own business: they are passed on as they are.
    """

    def __init__(self, settings: Mapping[str, Any], **options: Any) -> None:
        super().__init__(**settings)


class MoERunner(nn.Module):
    """Gate, routed experts, shared experts: ``[tokens, hidden]`` → ``[tokens, hidden]``.

    Attributes:
        routed_experts: the experts.
    """

    def __init__(
        self, routed_experts: Experts, around: Surroundings, reduce_results: bool = True, **options: Any
    ) -> None:
        super().__init__()
        self.routed_experts = routed_experts
        self._around, self._reduce = around, reduce_results

    @property
    def gate(self) -> nn.Module | None:
        return self._around.gate

    @property
    def shared_experts(self) -> nn.Module | None:
        return self._around.shared_experts

    @property
    def is_internal_router(self) -> bool:
        """Whether logits need not be given."""
        return self._around.gate is not None

    def __getattr__(self, name: str) -> Any:
        """What is not the runner's is the experts': sizes, placement, loaders."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__") or name == ROUTED:
                raise
            return getattr(super().__getattr__(ROUTED), name)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """Where things are listed under all their names, the experts are at the runner's own as well, for files that
        know nothing of what is between."""
        if not remove_duplicate:
            yield prefix, self.routed_experts
        yield from super().named_modules(memo, prefix, remove_duplicate)

    def forward(
        self, hidden_states: torch.Tensor, router_logits: torch.Tensor | None = None, **more: Any
    ) -> torch.Tensor:
        return self._around.answer(self.routed_experts, hidden_states, router_logits, self._reduce)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """The experts' tensors, under their own names or below ``routed_experts``."""
        plain = ((name.removeprefix(f"{ROUTED}."), tensor) for name, tensor in weights)
        return {f"{ROUTED}.{name}" for name in self.routed_experts.load_weights(plain)}


def FusedMoEFactory(
    num_experts: int,
    top_k: int,
    hidden_size: int,
    intermediate_size: int,
    *,
    reduce_results: bool = True,
    routed_experts_cls: type[RoutedExperts] | None = None,
    routed_experts_args: Mapping[str, Any] | None = None,
    runner_cls: type[MoERunner] | None = None,
    runner_args: Mapping[str, Any] | None = None,
    **options: Any,
) -> MoERunner:
    """Experts with all that surrounds them.

    Args:
        routed_scaling_factor: multiplies the routed experts' weights, or, under `apply_routed_scale_to_output`, what
            they say.
        zero_expert_type: "identity": logits beyond `num_experts` are of experts that give a token back as it is.
        gate, shared_experts, …: as `Surroundings` has them. The rest is `bestiary.nn.FusedMoE`'s.
    """
    around = Surroundings.taken_from(options)
    settings, transposed = experts_settings(options)
    settings |= {
        "num_experts": num_experts, "top_k": top_k, "hidden_size": hidden_size, "reduce_results": False,
        "intermediate_size": intermediate_size,
    }  # fmt: skip
    experts = (routed_experts_cls or RoutedExperts)(settings, **routed_experts_args or {})
    experts.is_transposed = transposed
    return (runner_cls or MoERunner)(experts, around, reduce_results, **runner_args or {})
