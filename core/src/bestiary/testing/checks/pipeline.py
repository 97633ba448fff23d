"""Pipeline stages: the model cut in pieces equals the whole. The stages are threads of this process."""

from __future__ import annotations

import torch
from torch import nn

from bestiary.api.conformance import claims
from bestiary.api.errors import BrokenPlugin
from bestiary.api.intermediate import IntermediateTensors
from bestiary.api.registry import ModelRegistry
from bestiary.api.sampling import SamplingParams
from bestiary.engine.plan import NewRequest, ScheduledItem, StepPlan
from bestiary.engine.runner import ModelRunner
from bestiary.nn.stack import PPMissingLayer
from bestiary.testing.base import ContractBase
from bestiary.testing.check import check
from bestiary.testing.compare import ATOL, require_close
from bestiary.testing.failures import ContractFailure
from bestiary.testing.logits import state_rows
from bestiary.testing.ranks import Ranks

STAGES = 2
MOST_STAGES = 4
_TOKENS = 5


class PipelineChecks(ContractBase):
    """`pipeline`."""

    @classmethod
    def why_not(cls, name: str) -> str | None:
        if name == "pipeline" and not claims(ModelRegistry.resolve([cls.architecture]), "supports_pp"):
            return "the class does not claim SupportsPP"
        return super().why_not(name)

    @check()
    def test_pipeline(self) -> None:
        """Pipeline stages, each with its share of the layers, equal one process."""
        layers = _num_layers(self.bench.model(self.bench.llm()))
        for stages in sorted({STAGES, max(STAGES, min(layers, MOST_STAGES))}):
            with Ranks(self.bench.checkpoint(), pipeline_parallel_size=stages) as ranks:
                for rank, runner in enumerate(ranks.runners):
                    if not any(isinstance(module, PPMissingLayer) for module in runner.model.modules()):
                        raise ContractFailure(
                            f"stage {rank} of {stages} holds all layers", likely=["layers are not made by make_layers"]
                        )
                _check_sent(ranks.runners[0])
                ids = self.bench.prompts()[2]
                require_close(
                    ranks.prompt_logits(ids, (7, len(ids) - 1)), self.bench.logits(ids), ATOL,
                    f"{stages} pipeline stages do not equal one process",
                    where=f"prompt of {len(ids)} tokens in three pieces",
                )  # fmt: skip


def _num_layers(model: nn.Module) -> int:
    return max((len(module) for module in model.modules() if isinstance(module, nn.ModuleList)), default=0)


def _check_sent(first: ModelRunner) -> None:
    """What the first stage hands on must be what the class says the next one receives."""
    plan = StepPlan(
        0, (ScheduledItem("kit", 0, _TOKENS, (0,), True, *state_rows(0)),),
        new=(NewRequest("kit", tuple(range(_TOKENS)), SamplingParams(), seed=0),),
    )  # fmt: skip
    batch = first.prepare(plan)
    try:
        sent = None if batch is None else first.stage.compute(batch)
    except BrokenPlugin as error:
        raise ContractFailure(
            "the first stage hands nothing on",
            got=error.value,
            allowed="IntermediateTensors from every stage but the last",
            likely=["`get_pp_group().is_last_rank` is not asked before the final norm"],
        ) from error
    if not isinstance(sent, IntermediateTensors):
        raise TypeError("a first stage of several has no logits")
    empty = first.model.make_empty_intermediate_tensors(_TOKENS, torch.float32, torch.device("cpu"))
    _check_empty(first, empty)
    said = {name: tuple(tensor.shape) for name, tensor in empty.items()}
    real = {name: tuple(tensor.shape) for name, tensor in sent.items()}
    if said != real:
        raise ContractFailure(
            "make_empty_intermediate_tensors does not describe what a stage hands on",
            got=str(real),
            allowed=str(said),
        )


def _check_empty(stage: ModelRunner, empty: object) -> None:
    """Zeros to be received into, each of its own: of the type and on the device asked for."""
    if not isinstance(empty, IntermediateTensors):
        kind = type(empty).__name__
        raise ContractFailure(f"make_empty_intermediate_tensors makes a {kind}", allowed="IntermediateTensors")
    problems = [f"{name} is not zeros" for name, tensor in empty.items() if tensor.any()]
    if len({tensor.data_ptr() for _, tensor in empty.items()}) < len(list(empty.items())):
        problems.append("two of them share their memory")
    elsewhere = stage.model.make_empty_intermediate_tensors(2, torch.float64, torch.device("meta"))
    for name, tensor in elsewhere.items():
        if (tensor.dtype, tensor.device.type) != (torch.float64, "meta"):
            problems.append(f"{name} is {tensor.dtype} on {tensor.device}; asked for were torch.float64 on meta")
    if problems:
        raise ContractFailure("make_empty_intermediate_tensors does not make what it is asked for", details=problems)
