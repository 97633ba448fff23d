"""The runner: executes plans on one device. It owns the model, the KV cache tensors and the requests' tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from bestiary.api.config import VllmConfig
from bestiary.api.errors import EngineError
from bestiary.api.intermediate import IntermediateTensors
from bestiary.api.lora import LoRAInfo
from bestiary.api.structured import StructuredOutputBackend
from bestiary.nn.graphs import Padding, StepRecorder
from bestiary.nn.lora import AdapterSlots
from bestiary.nn.ops.registry import ChosenOps, turn
from bestiary.nn.ops.step import place_rows
from bestiary.nn.parallel import Groups, use_groups
from bestiary.nn.pooling import Pooler

from .batch import ForwardBatch, make_batch
from .decode_input import DecodeInput, nobodys_prompt
from .drawing import draw
from .graphs import StepGraphs
from .layer_states import make_states
from .loaded_adapters import LoadedAdapters
from .model_layers import make_kv_caches
from .pending import Begun, can_draw, can_wait, draw_begun
from .plan import StepPlan, StepResult
from .request_state import RequestState
from .stage import Made, Stage
from .structured.follower import Grammars
from .vocabulary import BestTokens


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
        self.adapters = None if slots is None else LoadedAdapters(slots)
        self.groups = groups or Groups()
        self.device = torch.device(vllm_config.device_config.device)
        self.block_size = vllm_config.cache_config.block_size
        self.states: dict[str, RequestState] = {}
        self.grammars: Grammars | None = None
        spare = isinstance(recorder, Padding)  # a block more, for rows that nobody asks for
        self.kv_caches = make_kv_caches(model, num_blocks + spare, self.block_size, self.device)
        self.defers = self.device.type == "cuda"
        limits = vllm_config.scheduler_config.max_num_batched_tokens, vllm_config.model_config.max_model_len
        self._most_tokens = min(limits)
        layer_states = make_states(model, num_state_rows + spare, self.device)
        self.stage = Stage(model, vllm_config, ops, vocab_size, self.groups, pooler, self.kv_caches, layer_states)
        spare_row = num_state_rows if layer_states else -1
        self.graphs = None if recorder is None else self._graphs(recorder, vllm_config, num_blocks, spare_row)

    @property
    def model(self) -> Any:
        return self.stage.model

    def _graphs(self, recorder: StepRecorder, vllm_config: VllmConfig, num_blocks: int, spare_row: int) -> StepGraphs:
        longest = min(-(-vllm_config.model_config.max_model_len // self.block_size), num_blocks)
        rows = vllm_config.scheduler_config.max_num_seqs
        padded = recorder.padded if isinstance(recorder, Padding) else int
        made = DecodeInput(
            rows, longest, self.block_size, self.device, padded, num_blocks, spare_row, self.stage.ops.of(place_rows)
        )
        return StepGraphs(recorder, made, self._all_agree if self.stage.divided else None)

    def _all_agree(self, value: bool) -> bool:
        """Whether it is true on all ranks that share the layers."""
        return bool(self.groups.tensor.all_gather(torch.tensor([value], device=self.device)).all())

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
        """As `execute`, but tokens stay on the device where `defers` says so and all of them can; they are read by
        `told`, and its requests hear of them by `settle`. Those that are drawn by more than what is known now are left
        to `draw_begun`. Other results are not recorded; a rank that does not draw has none."""
        batch = self.prepare(plan)
        if batch is None:
            return Begun(plan, None, StepResult(plan.step, {}))
        made = self.made_of(batch, plan)
        if self.defers and can_wait(batch) and isinstance(made, tuple | torch.Tensor | BestTokens):
            begun = Begun(plan, batch, made=made)
            if can_draw(batch):
                self.draw_begun(begun)
            return begun
        return Begun(plan, batch, self.draw(plan, batch, made) if self.draws else None)

    @torch.inference_mode()
    def draw_begun(self, begun: Begun) -> None:
        """Draw the tokens of a step that was begun, unless that was done before: those of the one before are known."""
        with self.stage.ops.active():
            draw_begun(begun, self.grammars, self.draws)

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
        if self.graphs is None or self.stage.pooler is not None or not isinstance(self.graphs.recorder, Padding):
            return 0
        self._try_a_prompt(self.graphs.input)
        if self.stage.divided:
            return self.graphs.record_all(self.stage.hidden_and_best, progress)
        with turn():
            return self.graphs.record_all(self.stage.logits_and_best, progress)

    def _try_a_prompt(self, input: DecodeInput) -> None:
        """Compute a prompt of as many tokens as a step has at most, all of it in the block that is nobody's. So its
        kernels are compiled, and its memory is taken, before a request waits for them."""
        new, item = nobodys_prompt(self._most_tokens, input)
        batch = make_batch(StepPlan(0, (item,)), {new.request_id: RequestState(new)}, self.block_size, self.device)
        try:
            self.stage.compute(batch)
        except torch.OutOfMemoryError as cause:
            raise EngineError(
                "a prompt of this length does not fit into the memory that the KV cache leaves",
                field="max_num_batched_tokens", value=self._most_tokens,
                fix="set a smaller max_num_batched_tokens or kv_cache_memory_bytes",
            ) from cause  # fmt: skip
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what is free is told when steps were captured

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
        with use_groups(self.groups), self.stage.ops.active():
            return self.adapters.add(name, path)

    def remove_adapter(self, lora_id: str) -> None:
        """Forget an adapter that no plan will name any more; one that is not known is none."""
        if self.adapters is not None:
            self.adapters.remove(lora_id)

    @torch.inference_mode()
    def draw(self, plan: StepPlan, batch: ForwardBatch, logits: Made) -> StepResult:
        """The tokens after a step's last logits, or the vectors; requests are left as they were."""
        return draw(plan, batch, logits, self.grammars, self.stage.ops)

    def record(self, batch: ForwardBatch, result: StepResult) -> None:
        """Append what was drawn, here or by another rank, to the requests of `batch`."""
        for state, _ in batch.sampled:
            token = result.sampled[state.request_id]
            if token.error is None and token.instead is None:
                state.append(token.token_id)

    @torch.inference_mode()
    def made_of(self, batch: ForwardBatch, plan: StepPlan, *, all_logits: bool = False) -> Made:
        """What a model whose stages are all here makes of a step, by itself or as it was recorded; `all_logits` as in
        `Stage.compute`."""
        if self.graphs is not None and self.graphs.took(batch):
            slots = {} if self.adapters is None else self.adapters.slot_of
            if self.stage.divided:
                results = self.graphs.repeated(batch, self.stage.hidden_and_best)
                if results is not None:
                    return self.stage.wanted_of(batch, results, all_logits)
                batch = self._batch(plan, slots)
            else:
                with turn():
                    return self.graphs.run(batch, self.stage.logits_and_best, lambda: self._batch(plan, slots))
        made = self.stage.compute(batch, all_logits=all_logits)
        if isinstance(made, IntermediateTensors):
            raise EngineError("this is not the last stage of a pipeline: it makes nothing")
        return made
