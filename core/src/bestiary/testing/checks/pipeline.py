"""Pipeline stages: the model cut in two equals the whole. Both stages run in this process, one after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from bestiary.api.config import ParallelConfig
from bestiary.api.conformance import claims
from bestiary.api.intermediate import IntermediateTensors
from bestiary.api.registry import ModelRegistry
from bestiary.api.sampling import SamplingParams
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.batch import ForwardBatch, make_batch
from bestiary.engine.build import EngineBuilder, bind_attention, target_of
from bestiary.engine.loader.load import build_model, load_model
from bestiary.engine.plan import NewRequest, ScheduledItem, StepPlan
from bestiary.engine.request_state import RequestState
from bestiary.engine.runner import ModelRunner
from bestiary.nn.context import ForwardContext, forward_context
from bestiary.nn.ops.registry import choose_ops
from bestiary.nn.parallel import Group, use_groups
from bestiary.nn.placement import finish
from bestiary.nn.stack import PPMissingLayer
from bestiary.testing.base import ContractBase
from bestiary.testing.check import check
from bestiary.testing.compare import ATOL, require_close
from bestiary.testing.failures import ContractFailure

STAGES = 2
_BLOCKS = 16


class PipelineChecks(ContractBase):
    """`pipeline`."""

    @classmethod
    def why_not(cls, name: str) -> str | None:
        if name == "pipeline" and not claims(ModelRegistry.resolve([cls.architecture]), "supports_pp"):
            return "the class does not claim SupportsPP"
        return super().why_not(name)

    @check()
    def test_pipeline(self) -> None:
        """Two pipeline stages, each with half of the layers, equal one process."""
        ids = self.bench.prompts()[2]
        stages = [_Stage(self.bench.checkpoint(), rank) for rank in range(STAGES)]
        for stage in stages:
            if not any(isinstance(module, PPMissingLayer) for module in stage.model.modules()):
                raise ContractFailure(
                    f"stage {stage.rank} of {STAGES} holds all layers", likely=["layers are not made by make_layers"]
                )
        rows = []
        request = RequestState(NewRequest("kit", tuple(ids), SamplingParams(prompt_logprobs=0), seed=0))
        for start, end in ((0, 7), (7, len(ids) - 1), (len(ids) - 1, len(ids))):
            batch = _batch(request, start, end, stages[0].runner.block_size)
            sent = stages[0].forward(batch, None)
            _check_sent(sent, stages[0], end - start)
            hidden = stages[1].forward(batch, sent)
            rows.append(stages[1].logits(batch, hidden))
        require_close(
            torch.cat(rows), self.bench.logits(ids), ATOL, "two pipeline stages do not equal one process",
            where=f"prompt of {len(ids)} tokens in three pieces",
        )  # fmt: skip


class _Stage:
    """One rank of the pipeline: its part of the model, loaded, with a KV cache of its own."""

    def __init__(self, checkpoint: object, rank: int) -> None:
        self.rank = rank
        self.group = Group(rank, STAGES)
        args = EngineArgs.make(
            str(checkpoint), {"dtype": "float32", "device": "cpu", "skip_tokenizer_init": True, "progress": False}
        )
        builder = EngineBuilder(args)
        with use_groups(pipeline=self.group):
            model_class, config = builder.configure()
            config = replace(config, parallel_config=ParallelConfig(pipeline_parallel_size=STAGES, rank=rank))
            self.model: Any = build_model(model_class, config)
            bind_attention(self.model, config, {})
            load_model(self.model, config, builder.description, builder.hooks.all("weight_formats"))
            self.ops = choose_ops(target_of(config), {}, {})
            finish(self.model)
            width = int(config.model_config.hf_text_config.vocab_size)
            self.runner = ModelRunner(self.model, config, _BLOCKS, self.ops, width)

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, received: Any) -> Any:
        with (
            use_groups(pipeline=self.group),
            self.ops.active(),
            forward_context(ForwardContext(batch.attention, self.runner.kv_caches)),
        ):
            ids = batch.input_ids
            return self.model(input_ids=ids, positions=batch.positions, intermediate_tensors=received)

    @torch.inference_mode()
    def logits(self, batch: ForwardBatch, hidden: Any) -> torch.Tensor:
        if not isinstance(hidden, torch.Tensor):
            raise ContractFailure(
                "the last stage does not return hidden states",
                got=type(hidden).__name__,
                allowed="a tensor [tokens, hidden]",
                likely=["`get_pp_group().is_last_rank` is not asked, or the other way round"],
            )
        with use_groups(pipeline=self.group), self.ops.active():
            logits: torch.Tensor = self.model.compute_logits(hidden_states=hidden)
        return logits


def _batch(request: RequestState, start: int, end: int, block_size: int) -> ForwardBatch:
    blocks = tuple(range(-(-end // block_size)))
    item = ScheduledItem(request.request_id, start, end - start, blocks, samples=end == len(request.tokens))
    return make_batch(StepPlan(0, (item,)), {request.request_id: request}, block_size, torch.device("cpu"))


def _check_sent(sent: object, stage: _Stage, tokens: int) -> None:
    """What the first stage hands on must be what the class says the next one receives."""
    if not isinstance(sent, IntermediateTensors):
        raise ContractFailure(
            "the first stage hands nothing on",
            got=type(sent).__name__,
            allowed="IntermediateTensors from every stage but the last",
            likely=["`get_pp_group().is_last_rank` is not asked before the final norm"],
        )
    empty = stage.model.make_empty_intermediate_tensors(tokens, torch.float32, torch.device("cpu"))
    _check_empty(stage, empty)
    said = {name: tuple(tensor.shape) for name, tensor in empty.items()}
    real = {name: tuple(tensor.shape) for name, tensor in sent.items()}
    if said != real:
        raise ContractFailure(
            "make_empty_intermediate_tensors does not describe what a stage hands on",
            got=str(real),
            allowed=str(said),
        )


def _check_empty(stage: _Stage, empty: object) -> None:
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
