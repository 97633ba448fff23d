"""The runner: executes plans on one device. It owns the model, the KV cache tensors and the requests' tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import nn

from bestiary.api.config import VllmConfig
from bestiary.api.errors import BrokenPlugin, EngineError
from bestiary.api.intermediate import IntermediateTensors
from bestiary.api.lora import LoRAInfo
from bestiary.api.outputs import TokenLogprobs
from bestiary.api.structured import StructuredOutputBackend
from bestiary.nn.attention.backend import KVCacheSpec
from bestiary.nn.attention.base import AttentionLayerBase
from bestiary.nn.context import ForwardContext, forward_context
from bestiary.nn.graphs import Padding, Results, StepRecorder
from bestiary.nn.lora import AdapterSlots
from bestiary.nn.ops.by_value import by_value
from bestiary.nn.ops.registry import ChosenOps, turn
from bestiary.nn.ops.sampling import best_tokens
from bestiary.nn.parallel import Groups, use_groups
from bestiary.nn.pooling import Pooler
from bestiary.nn.prompt import PromptDependent
from bestiary.nn.zeros import untouched_zeros

from .batch import ForwardBatch, make_batch
from .decode_input import DecodeInput
from .graphs import StepGraphs
from .layer_states import make_states
from .loaded_adapters import LoadedAdapters
from .pending import Begun, begin, can_wait
from .plan import StepPlan, StepResult
from .pooler import checked_vectors, pooled
from .request_state import RequestState
from .sampler import logprobs_of, sample, sample_best
from .structured.follower import Grammars
from .vocabulary import BestTokens, DividedVocabulary, sampled_rows

Made: TypeAlias = torch.Tensor | Results | BestTokens | list[torch.Tensor] | None
"""What a model's last stage makes in a step: logits, alone or with the largest of each row and its id, or these alone;
or the vectors of prompts that end; None where nothing is due."""


def attention_layers(model: nn.Module) -> dict[str, AttentionLayerBase]:
    """The model's attention layers, of every kind, by full name, in definition order."""
    return {module.layer_name: module for module in model.modules() if isinstance(module, AttentionLayerBase)}


def kv_cache_specs(model: nn.Module) -> dict[str, KVCacheSpec]:
    """What each layer keeps for every token: asked of the model, never read from its configuration."""
    specs = {name: layer.get_kv_cache_spec() for name, layer in attention_layers(model).items()}
    return {name: spec for name, spec in specs.items() if spec is not None}


def prompt_salt(model: nn.Module) -> Callable[[int], str] | None:
    """Length of a prompt → what the model's layers say of it; None where no layer's keys or values depend on it."""
    layers = [module for module in model.modules() if isinstance(module, PromptDependent)]
    return (lambda length: ",".join(str(layer.cache_salt(length)) for layer in layers)) if layers else None


class ModelRunner:
    """Runs one model, step by step. A step that raises leaves every request as it was: tokens are appended last.

    Args:
        model: loaded and finished; its attention layers have their backends.
        num_blocks: KV-cache blocks that every caching layer gets. ops: the versions of ops its steps run with.
        vocab_size: the width that its logits must have.
        groups: among whom the model is divided; the step runs under them.
        slots: the model's adapter slots; None where it has none.
        pooler: makes vectors of its hidden states, where no logits are wanted.
        recorder: makes decode steps run again without Python; None where that cannot be, or is not wanted.
        num_state_rows: rows that every layer with a state gets.
    """

    def __init__(
        self,
        model: nn.Module,
        vllm_config: VllmConfig,
        num_blocks: int,
        ops: ChosenOps,
        vocab_size: int,
        groups: Groups | None = None,
        slots: AdapterSlots | None = None,
        pooler: Pooler | None = None,
        recorder: StepRecorder | None = None,
        num_state_rows: int = 0,
    ) -> None:
        self.pooler = pooler
        self.adapters = None if slots is None else LoadedAdapters(slots)
        self.model: Any = model
        self.vocabulary = DividedVocabulary(model)
        self.groups = groups or Groups()
        self.dtype = vllm_config.model_config.dtype
        self.ops = ops
        self.vocab_size = vocab_size
        self.deterministic = vllm_config.model_config.deterministic
        self.device = torch.device(vllm_config.device_config.device)
        self.block_size = vllm_config.cache_config.block_size
        self.states: dict[str, RequestState] = {}
        self.grammars: Grammars | None = None
        spare = isinstance(recorder, Padding)  # a block more, for rows that nobody asks for
        self.kv_caches = self._allocate(model, num_blocks + spare)
        self.defers = self.device.type == "cuda"
        self.layer_states = make_states(model, num_state_rows + spare, self.device)
        self.graphs = None if recorder is None else self._graphs(recorder, vllm_config, num_blocks, num_state_rows)

    def _graphs(
        self, recorder: StepRecorder, vllm_config: VllmConfig, num_blocks: int, num_state_rows: int
    ) -> StepGraphs:
        longest = min(-(-vllm_config.model_config.max_model_len // self.block_size), num_blocks)
        rows = vllm_config.scheduler_config.max_num_seqs
        padded = recorder.padded if isinstance(recorder, Padding) else int
        spare_row = num_state_rows if self.layer_states else -1
        made = DecodeInput(rows, longest, self.block_size, self.device, padded, num_blocks, spare_row)
        return StepGraphs(recorder, made, self._all_agree if self._divided else None)

    @property
    def _divided(self) -> bool:
        """Whether ranks share each layer, so that they wait for each other within a step."""
        return self.groups.tensor.world_size > 1

    def _all_agree(self, value: bool) -> bool:
        """Whether it is true on all ranks that share the layers."""
        return bool(self.groups.tensor.all_gather(torch.tensor([value], device=self.device)).all())

    def _allocate(self, model: nn.Module, num_blocks: int) -> dict[str, torch.Tensor]:
        caches = {}
        layers = attention_layers(model)
        for name, spec in kv_cache_specs(model).items():
            shape = layers[name].bound_backend().cache_shape(spec, num_blocks, self.block_size)
            caches[name] = untouched_zeros(tuple(shape), spec.dtype, self.device)
        return caches

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """One forward pass of a whole model, and the draws after it."""
        batch = self.prepare(plan)
        if batch is None:
            return StepResult(plan.step, {})
        result = self.draw(plan, batch, self.made_of(batch, plan))
        self.record(batch, result)
        return result

    @torch.inference_mode()
    def begin(self, plan: StepPlan) -> Begun:
        """As `execute`, but tokens stay on the device until `finish` where `defers` says so and all draws can wait."""
        batch = self.prepare(plan)
        if batch is None:
            return Begun(plan, None, StepResult(plan.step, {}))
        made = self.made_of(batch, plan)
        if self.defers and can_wait(batch) and isinstance(made, tuple | torch.Tensor):
            with self.ops.active():
                logits, *best = made if isinstance(made, tuple) else (made, *best_tokens(made))
                return begin(plan, batch, logits, best)
        result = self.draw(plan, batch, made)
        self.record(batch, result)
        return Begun(plan, batch, result)

    @torch.inference_mode()
    def logits(self, plan: StepPlan) -> torch.Tensor:
        """The logits `execute` would sample from, without sampling: ``[rows wanted by the plan, vocabulary]``."""
        batch = self.prepare(plan)
        made = None if batch is None else self.made_of(batch, plan, all_logits=True)
        logits = made[0] if isinstance(made, tuple) else made
        if not isinstance(logits, torch.Tensor):
            raise ValueError("this plan wants no logits")
        return logits

    @torch.inference_mode()
    def record_steps(self, progress: Callable[[int, int], None] | None = None) -> int:
        """Record decode steps of every size before any is asked for; how many. 0 where nothing records, or where steps
        have as many sizes as there are numbers of sequences: those are recorded as they come."""
        if self.graphs is None or self.pooler is not None or not isinstance(self.graphs.recorder, Padding):
            return 0
        if self._divided:
            return self.graphs.record_all(self._hidden_and_best, progress)
        with turn():
            return self.graphs.record_all(self._logits_and_best, progress)

    # The parts of a step, for executors that divide it among processes.

    def prepare(self, plan: StepPlan) -> ForwardBatch | None:
        """Take note of what ended and began; the input of the step, None where nothing is to be computed."""
        for request_id in plan.finished:
            self.states.pop(request_id, None)
        for new in plan.new:
            self.states[new.request_id] = RequestState(new)
        slots = {} if self.adapters is None else self.adapters.follow(plan)
        if plan.lora_loads and self.graphs is not None:
            self.graphs.forget_adapted()
        if not plan.items:
            return None
        batch = None if self.graphs is None else self.graphs.take(plan, self.states, slots)
        if batch is None:
            batch = self._batch(plan, slots)
        if self.grammars is not None:
            self.grammars.begin(state for state, _ in batch.sampled)
        return batch

    def _batch(self, plan: StepPlan, slots: Mapping[str, int]) -> ForwardBatch:
        return make_batch(plan, self.states, self.block_size, self.device, slots)

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn on this rank."""
        return self.groups.pipeline.is_last_rank and self.groups.tensor.is_first_rank

    def use_backend(self, make: Callable[[], StructuredOutputBackend]) -> None:
        """Answers may have a form from now on. `make` is called when one has."""
        self.close()
        self.grammars = Grammars(make) if self.draws else None

    def close(self) -> None:
        """End the threads that work on grammars."""
        if self.grammars is not None:
            self.grammars.close()

    def add_adapter(self, name: str, path: str) -> LoRAInfo:
        """Read an adapter, check that it fits this rank's part, and keep it for plans. Raises `BadAdapter`."""
        if self.adapters is None:
            raise EngineError("this model has no slots for adapters")
        with use_groups(self.groups), self.ops.active():
            return self.adapters.add(name, path)

    def remove_adapter(self, lora_id: str) -> None:
        """Forget an adapter that no plan will name any more; one that is not known is none."""
        if self.adapters is not None:
            self.adapters.remove(lora_id)

    def empty(self, batch: ForwardBatch) -> IntermediateTensors:
        """What this stage receives from the one before, to be filled."""
        made: IntermediateTensors = self.model.make_empty_intermediate_tensors(
            len(batch.input_ids), self.dtype, self.device
        )
        return made

    @torch.inference_mode()
    def compute(
        self, batch: ForwardBatch, received: IntermediateTensors | None = None, *, all_logits: bool = False
    ) -> Made | IntermediateTensors:
        """This stage's part: what the next one receives, or, from the last, logits or vectors. Without `all_logits`,
        best tokens alone where ranks divide the vocabulary and nothing more is wanted."""
        with self._in_force():
            hidden = self._hidden(batch, received)
            if isinstance(hidden, IntermediateTensors):
                return hidden
            if self.pooler is not None:
                return self._pool(self.pooler, batch, hidden)
            if batch.logits_rows is not None:
                if not len(batch.logits_rows):
                    return None
                hidden = hidden[batch.logits_rows]
            if not all_logits and self.vocabulary.serves(batch):
                best = self._best(batch, hidden)
                if best is not None:
                    return best
            return self._logits(batch, hidden)

    @contextmanager
    def _in_force(self) -> Iterator[None]:
        """While it lasts, what this runner's model computes with: its groups, its ops, its order of summation."""
        elementwise = by_value() if self.deterministic else nullcontext()  # type: ignore[no-untyped-call]
        with use_groups(self.groups), self.ops.active(), elementwise:
            yield

    def _hidden(
        self, batch: ForwardBatch, received: IntermediateTensors | None = None
    ) -> torch.Tensor | IntermediateTensors:
        """Hidden states ``[tokens, hidden]``, or, before the last stage, what the next one receives."""
        more = {} if received is None else {"intermediate_tensors": received}
        with forward_context(ForwardContext(batch.attention, self.kv_caches, batch.lora, self.layer_states)):
            hidden: torch.Tensor = self.model(input_ids=batch.input_ids, positions=batch.positions, **more)
        if not self.groups.pipeline.is_last_rank:
            return _checked_intermediates(hidden)
        _check_shape("forward", hidden, len(batch.input_ids), None)
        return hidden

    def _logits(self, batch: ForwardBatch, hidden: torch.Tensor) -> torch.Tensor:
        with forward_context(ForwardContext(batch.attention, self.kv_caches, batch.logits_lora)):
            logits: torch.Tensor = self.model.compute_logits(hidden_states=hidden)
        _check_shape("compute_logits", logits, len(hidden), self.vocab_size)
        return logits

    def _best(self, batch: ForwardBatch, hidden: torch.Tensor) -> BestTokens | None:
        with forward_context(ForwardContext(batch.attention, self.kv_caches, batch.logits_lora)):
            return self.vocabulary.best(hidden, [state for state, _ in batch.sampled])

    @torch.inference_mode()
    def draw(self, plan: StepPlan, batch: ForwardBatch, logits: Made) -> StepResult:
        """The tokens after a step's last logits, or the vectors; requests are left as they were."""
        if logits is None:
            return StepResult(plan.step, {})
        if isinstance(logits, list):
            return StepResult(plan.step, {}, pooled=pooled(batch.pooled, logits))
        if isinstance(logits, BestTokens):
            found = sampled_rows(logits, batch.sampled)
            ids = (state.request_id for state, _ in batch.sampled)
            return StepResult(plan.step, dict(zip(ids, sample_best(found.logits, found.ids), strict=True)))
        best = None
        if isinstance(logits, tuple):
            logits, *best = logits
        prompts = _prompt_logprobs(batch, logits)
        states = [state for state, _ in batch.sampled]
        rows = [row for _, row in batch.sampled]
        if len(rows) != logits.shape[0]:
            logits = logits[rows]
        allowed = None if self.grammars is None else self.grammars.allowed(states)
        with self.ops.active() if logits.is_cuda else nullcontext():
            drawn = sample(logits, states, allowed, best) if states else []
        return StepResult(plan.step, dict(zip((state.request_id for state in states), drawn, strict=True)), prompts)

    def record(self, batch: ForwardBatch, result: StepResult) -> None:
        """Append what was drawn, here or by another rank, to the requests of `batch`."""
        for state, _ in batch.sampled:
            token = result.sampled[state.request_id]
            if token.error is None and token.instead is None:
                state.append(token.token_id)

    def _pool(self, pooler: Pooler, batch: ForwardBatch, hidden: torch.Tensor) -> list[torch.Tensor]:
        if batch.pooling is None:
            raise EngineError("a request that generates has come to a runner that pools")
        with forward_context(ForwardContext(batch.attention, self.kv_caches, batch.logits_lora)):
            return checked_vectors(pooler, pooler(hidden, batch.pooling), batch.pooling)

    @torch.inference_mode()
    def made_of(self, batch: ForwardBatch, plan: StepPlan, *, all_logits: bool = False) -> Made:
        """What a model whose stages are all here makes of a step, by itself or as it was recorded; `all_logits` as in
        `compute`."""
        if self.graphs is not None and self.graphs.took(batch):
            slots = {} if self.adapters is None else self.adapters.slot_of
            if self._divided:
                results = self.graphs.repeated(batch, self._hidden_and_best)
                if results is not None:
                    return self._after(batch, results, all_logits)
                batch = self._batch(plan, slots)
            else:
                with turn():
                    return self.graphs.run(batch, self._logits_and_best, lambda: self._batch(plan, slots))
        made = self.compute(batch, all_logits=all_logits)
        if isinstance(made, IntermediateTensors):
            raise EngineError("this is not the last stage of a pipeline: it makes nothing")
        return made

    def _hidden_and_best(self, batch: ForwardBatch) -> Results:
        """A step's hidden states, and best tokens where ranks can find these by their own parts of the vocabulary.
        Not logits: these go from all ranks to all, and few steps need them."""
        with self._in_force():
            hidden = self._hidden(batch)
            if isinstance(hidden, IntermediateTensors):
                raise EngineError("steps of a pipeline are not recorded")
            best = self._best(batch, hidden)
        return (hidden,) if best is None else (hidden, best.logits, best.ids)

    def _after(self, batch: ForwardBatch, results: Results, all_logits: bool) -> Made:
        """What `batch` wants of what `_hidden_and_best` gave."""
        hidden, *best = results
        with self._in_force():
            if best and not all_logits and self.vocabulary.serves(batch):
                greedy = all(state.sampling.greedy for state, _ in batch.sampled)
                return BestTokens(*best) if greedy else self._best(batch, hidden)
            return self._logits(batch, hidden)[: len(batch.sampled)]

    def _logits_and_best(self, batch: ForwardBatch) -> Results:
        """A step's logits, the largest of each row, and its id."""
        logits = self.compute(batch)
        if not isinstance(logits, torch.Tensor):
            raise EngineError("a decode step made no logits")
        with self.ops.active():
            return logits, *best_tokens(logits)


def _checked_intermediates(found: object) -> IntermediateTensors:
    if isinstance(found, IntermediateTensors):
        return found
    raise BrokenPlugin(
        "the model's forward returned what it must not", field="forward", value=type(found).__name__,
        limit="IntermediateTensors, from every pipeline stage but the last",
    )  # fmt: skip


def _check_shape(method: str, found: object, rows: int, width: int | None) -> None:
    """What a model's method returned must be a row for each row it was given."""
    shape = tuple(found.shape) if isinstance(found, torch.Tensor) else None
    wanted = (rows, "hidden") if width is None else (rows, width)
    fits = shape is not None and len(shape) == 2 and shape[0] == rows and width in (None, shape[1])
    if not fits or not isinstance(found, torch.Tensor) or not found.is_floating_point():
        raise BrokenPlugin(
            f"the model's {method} returned what it must not",
            field=method,
            value=type(found).__name__ if shape is None else f"{found.dtype} {list(shape)}",  # type: ignore[attr-defined]
            limit=f"floating-point numbers of shape {list(wanted)}",
        )


def _prompt_logprobs(batch: ForwardBatch, logits: torch.Tensor) -> dict[str, list[TokenLogprobs]]:
    found = {}
    for state, rows, first in batch.prompt_rows:
        count = state.sampling.prompt_logprobs or 0
        asked = [(logits[row], state.tokens[first + index], count) for index, row in enumerate(rows)]
        found[state.request_id] = logprobs_of(asked)
    return found
