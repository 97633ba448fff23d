"""From arguments to a running engine."""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bestiary.api.config import VllmConfig
from bestiary.api.conformance import supports_lora
from bestiary.api.entries import Resolution
from bestiary.api.errors import ModelError, UsageError
from bestiary.api.hook_manager import HookManager
from bestiary.api.hooks import KINDS
from bestiary.api.lora import LoRARequest
from bestiary.api.registry import ModelRegistry, Registry
from bestiary.api.structured import StructuredOutputBackend, Vocabulary
from bestiary.nn.attention.backend import AttentionType
from bestiary.nn.attention.choice import choose_backend
from bestiary.nn.graphs import Described, StepRecorder, Together
from bestiary.nn.logits import LogitsProcessor
from bestiary.nn.lora import AdapterSlots, attach
from bestiary.nn.ops.registry import ChosenOps, Target, choose_ops
from bestiary.nn.parallel import use_groups
from bestiary.nn.placement import finish
from bestiary.nn.pooling import Pooler
from bestiary.nn.weights.fill import num_weights

from .adapters import Adapters
from .arguments import EngineArgs
from .capture import capture_steps
from .engine import LLMEngine
from .executor import UniprocExecutor
from .graphs import choose_recorder
from .layer_states import state_specs
from .loader.alias import AppliedAlias
from .loader.description import ModelDescription, describe
from .loader.load import build_model, load_model
from .loader.progress import load_progress, say
from .loader.quantization import choose_quantization
from .loader.vllm_config import choose_device, make_vllm_config, parallel_config
from .memory import cache_room
from .model_layers import attention_layers, kv_cache_specs, prompt_salt
from .notices import notice
from .parallel.assembly import assemble
from .parallel.eplb import check_eplb
from .parallel.executor import RankExecutor
from .parallel.seat import Seat, device_index, take_seat
from .parallel.team import Team
from .pooler import offer_of, pooler_of, with_pooler
from .pooling import with_runner
from .runner import ModelRunner
from .scheduler import Scheduler
from .state_rows import WORKING_ROWS


class EngineBuilder:
    """Builds one engine, in two strides, so that a caller can read the tokenizer between them.

    builder = EngineBuilder(args)      # finds and reads the model's small files
    engine = builder.build()           # imports its plugin, loads its weights, sizes the KV cache
    """

    def __init__(
        self,
        args: EngineArgs,
        registry: Registry = ModelRegistry,
        *,
        seat: Seat | None = None,
        together: bool = True,
        on_built: Callable[[], None] = lambda: None,
    ) -> None:
        """`seat` is a rank's that another process started; otherwise this one finds its own, and starts the others.
        Where ranks are not to come `together`, there is no seat: to look at a model, or at a rank's part of it.

        `parameters` is how many numbers this rank's part of a built model has; one that is shared counts once.
        `on_built` is called when this rank's part of the model is built, before it waits for the others.
        """
        self.on_built = on_built
        self.args = args
        self.registry = registry
        self.parallel = parallel_config(args)
        self.seat = seat or (take_seat(self.parallel) if together else None)
        if self.seat is not None:
            self.parallel = replace(self.parallel, rank=self.seat.rank)
        self.hooks = HookManager(registry.installation, args.plugin, args.kernels).load()
        self._check_choices()
        self.description: ModelDescription = describe(args, self.hooks, registry)
        self.found: Resolution | None = None
        self.parameters = 0

    def _check_choices(self) -> None:
        """A choice among plugins must name something that is there to be chosen."""
        hooks = {f"{kind}.{name}" for kind in KINDS for name in self.hooks.names(kind)}
        if not self.args.plugin.keys() <= {*self.registry.architectures(), *hooks}:
            self.registry.ask_registrars()
        known = {*self.registry.architectures(), *hooks}
        for name, distribution in self.args.plugin.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                raise UsageError(
                    f"nothing installed is called {name}, so {distribution} cannot be chosen for it",
                    field="plugin", value=name, limit="an installed architecture, or kind.name of a hook",
                    fix=f"did you mean {near[0]}?" if near else "bestiary models",
                )  # fmt: skip

        backends, wanted = "structured_output_backends", self.args.structured_outputs_backend
        if wanted not in self.hooks.names(backends):
            self.hooks.get(backends, wanted)  # raises

    def _structured_backend(self, vocabulary: Vocabulary) -> StructuredOutputBackend:
        name = self.args.structured_outputs_backend
        backend: StructuredOutputBackend = self.hooks.get("structured_output_backends", name)(vocabulary)
        return backend

    def configure(self) -> tuple[type, VllmConfig]:
        """Resolve the architecture, which imports its plugin, and settle every option."""
        found = self.registry.find(self.description.architectures, self.args.plugin, guarded=True)
        self.found = found
        self.description = self.description.resolved(found, self.hooks)
        hf_config, misspelt = self.description.hf_config(self.hooks)
        for text in (*self.description.notices, *misspelt):
            notice(text)
        packing = self._packing()
        quantization = choose_quantization(self.args, self.description, self.hooks, packing)
        config = make_vllm_config(self.args, self.description, found.architecture, hf_config, quantization, packing)
        config = with_runner(config, self.args, found.model_class, lambda: self.description.pooling_type)
        return found.model_class, replace(config, parallel_config=self.parallel)

    def _packing(self) -> frozenset[str]:
        """The ops that would read weights in a form of their own, if activations were float32."""
        target = Target(choose_device(self.args.device), torch.float32, self.args.deterministic)
        return choose_ops(target, self.args.ops, self.hooks.all("op_implementations")).packing

    def build(self, eos_token_ids: frozenset[int] = frozenset()) -> LLMEngine:
        """Load everything. `eos_token_ids` are added to those the model's files name."""
        model_class, config = self.configure()
        team = None if self.seat is None else Team(self.parallel, self.seat, config.device_config.device)
        if team is not None and team.device == "cuda":
            torch.cuda.set_device(device_index(team.seat, torch.cuda.device_count()))
        ops = choose_ops(target_of(config), config.op_config.implementations, self.hooks.all("op_implementations"))
        try:
            with use_groups(None if team is None else team.groups):
                model = build_model(model_class, config)
                self.parameters = sum(num_weights(each) for each in model.parameters())
                check_eplb(model, config)
                check_lora(model, config)
                pooler = pooler_of(model, config)
                config = with_pooler(config, model, pooler)
                bind_attention(model, config, self.hooks.all("attention_backends"))
                if team is not None and self.found is not None:
                    self.on_built()
                    assemble(team, self.args, self.description, self.found, eos_token_ids)
                load_model(model, config, self.description, self.hooks.all("weight_formats"))
                repacking = self.args.progress and bool(ops.packing)
                with ops.active(), load_progress("packing weights", enabled=repacking) as progress:
                    finish(model, progress)
                slots = adapter_slots(model, config, self.description.alias)
            engine = self._engine(model, config, ops, team, eos_token_ids, slots, pooler)
            if team is None or team.leads:
                for name, path in self.args.lora_modules.items():
                    engine.add_lora(LoRARequest(name, lora_path=path))
            return engine
        except BaseException:
            if team is not None:
                team.abandon()
                team.close()
            raise

    def _recorder(self, model: nn.Module, config: VllmConfig) -> StepRecorder | None:
        """What records decode steps here, if anything does."""
        recorder, _ = self.recording(model, config)
        return None if recorder is None else recorder()

    def recording(self, model: nn.Module, config: VllmConfig) -> tuple[type[StepRecorder] | None, str]:
        """What would record the decode steps of a model whose attention is bound, or why nothing would."""
        if self.args.enforce_eager:
            return None, "enforce_eager"
        if self.parallel.pipeline_parallel_size > 1:
            return None, "the stages of a pipeline wait for each other on the host"
        if self.parallel.enable_eplb:
            return None, "experts move between ranks (enable_eplb)"
        backends = [layer.backend for layer in attention_layers(model).values()]
        recorder, why = choose_recorder(self.hooks.all("step_recorders"), target_of(config), backends)
        divided = self.seat is not None or self.parallel.world_size_across_dp > 1
        if recorder is not None and divided and not issubclass(recorder, Together):
            return None, f"{recorder.name} records what one process does, and the model is divided among ranks"
        return recorder, why

    def _engine(
        self,
        model: nn.Module,
        config: VllmConfig,
        ops: ChosenOps,
        team: Team | None,
        eos_token_ids: frozenset[int],
        slots: AdapterSlots | None,
        pooler: Pooler | None,
    ) -> LLMEngine:
        local = 1 if team is None else team.seat.local_size
        on_cpu = config.device_config.device == "cpu"  # where the slots' memory is taken when it is written
        reserved = slots.nbytes * local if slots is not None and on_cpu else 0
        room = cache_room(kv_cache_specs(model).values(), state_specs(model).values(), config, reserved, local)
        num_blocks, num_rows = room.num_blocks, room.num_state_rows
        if team is not None:
            num_blocks, num_rows = team.smallest(num_blocks), fewest_rows(team, num_rows)
        config = _with_running(config, num_rows)
        width = vocab_size(model, config)
        groups = None if team is None else team.groups
        recorder = self._recorder(model, config)
        say(f"kernels: {kernels_in_words(ops, recorder)}", enabled=self.args.progress and (team is None or team.leads))
        runner = ModelRunner(model, config, num_blocks, ops, width, groups, slots, pooler, recorder, num_rows)
        if self.args.capture_sizes == "at_start":
            capture_steps(runner, self.args.progress)
        adapters = Adapters(config.lora_config)
        schedulers = [
            Scheduler(
                config.scheduler_config,
                config.cache_config,
                config.model_config.max_model_len,
                num_blocks,
                prompt_salt(model),
                self.parallel.pipeline_parallel_size,
                adapters,
                num_rows or None,
            )
            for _ in range(self.parallel.data_parallel_size)
        ]
        engine = LLMEngine(
            config,
            schedulers,
            UniprocExecutor(runner, config.scheduler_config.async_scheduling)
            if team is None
            else RankExecutor(runner, team),
            team=team,
            adapters=adapters,
            vocab_size=width,
            eos_token_ids=_within(self.description.eos_token_ids | eos_token_ids, width),
            observers=[make() for make in self.hooks.all("step_observers").values()],
            ops=ops.names,
            pooling=offer_of(pooler, model, config),
            make_backend=self._structured_backend,
        )
        if team is not None:
            weakref.finalize(engine, team.close)  # an engine that nobody closed ends its processes all the same
        return engine


def kernels_in_words(ops: ChosenOps, recorder: StepRecorder | None) -> str:
    """Whose kernels multiply, and what they say of themselves: "native (bestiary-cpu 0.1.0, avx512, 2 threads)"."""
    names = sorted({ops.versions[name].name for name in ops.packing}) or ["torch"]
    facts: Mapping[str, str | int] = recorder.describe() if isinstance(recorder, Described) else {}
    known = [str(facts[name]) for name in ("library", "instruction_set") if name in facts]
    known += [f"{facts['threads']} threads"] if "threads" in facts else []
    return ", ".join(names) + (f" ({', '.join(known)})" if known else "")


def check_lora(model: nn.Module, config: VllmConfig) -> None:
    """Refuse adapters where they cannot be. For models just built.

    Raises:
        ModelError: the class does not claim that adapters fit it.
    """
    if config.lora_config is not None and not supports_lora(model):
        raise ModelError(
            f"{type(model).__name__} does not say that adapters fit it", code="LORA_UNSUPPORTED",
            field=config.model_config.architecture, limit="a class that claims SupportsLoRA",
            fix="without enable_lora and --lora; or its author: claim SupportsLoRA",
        )  # fmt: skip


def adapter_slots(
    model: nn.Module, config: VllmConfig, alias: AppliedAlias | None, device: str | None = None
) -> AdapterSlots | None:
    """Slots for adapters in a finished model, on its device or on `device`; None where none are wanted. The renames of
    an `alias` hold for adapters too."""
    if config.lora_config is None:
        return None
    mappers = [] if alias is None else [alias.mapper()]
    return attach(model, config.lora_config, torch.device(device or config.device_config.device), mappers)


def fewest_rows(team: Team, num_state_rows: int) -> int:
    """Rows of states on every rank: the fewest of those that have such layers; 0 where no rank has one."""
    most = -team.smallest(-num_state_rows)
    return team.smallest(num_state_rows or most)


def _with_running(config: VllmConfig, num_state_rows: int) -> VllmConfig:
    """The configuration with no more running sequences than there are two rows of states for."""
    wanted = config.scheduler_config.max_num_seqs
    if num_state_rows == 0 or num_state_rows >= WORKING_ROWS * wanted:
        return config
    running = num_state_rows // WORKING_ROWS
    notice(f"max_num_seqs={running} instead of {wanted}: there is memory for {num_state_rows} rows of layers' states")
    return replace(config, scheduler_config=replace(config.scheduler_config, max_num_seqs=running))


def _within(eos_token_ids: frozenset[int], vocab_size: int) -> frozenset[int]:
    """The end-of-sequence ids that the model can draw; others are left out, and that is said."""
    outside = sorted(each for each in eos_token_ids if not 0 <= each < vocab_size)
    if outside:
        notice(f"end-of-sequence ids {outside[:8]} are left out: the model draws ids from 0 to {vocab_size - 1}")
    return eos_token_ids.difference(outside)


def target_of(config: VllmConfig) -> Target:
    """What ops and kernels are chosen for."""
    return Target(config.device_config.device, config.model_config.dtype, config.model_config.deterministic)


def bind_attention(model: nn.Module, config: VllmConfig, offered: Mapping[str, Any]) -> None:
    """Give every attention layer the one backend that runs them all; those that were made with one keep theirs."""
    layers = attention_layers(model)
    crossing = [name for name, layer in layers.items() if layer.spec.attn_type is AttentionType.ENCODER_DECODER]
    if crossing:
        raise ModelError(
            "this engine runs decoders: it has no steps for an encoder whose output a decoder attends to",
            code="UNSUPPORTED_LAYER", field=crossing[0], value=AttentionType.ENCODER_DECODER.value,
        )  # fmt: skip
    model_config = config.model_config
    backends = {name: make() for name, make in offered.items()}
    backend = choose_backend(
        config.op_config.attention_backend,
        config.device_config.device,
        [spec for layer in layers.values() for spec in (layer.spec, *layer.more_specs)],
        backends,
        dtype=model_config.dtype,
        deterministic=model_config.deterministic,
    )
    for layer in layers.values():
        layer.backend = layer.backend or backend


def vocab_size(model: nn.Module, config: VllmConfig) -> int:
    """Width of the logits, asked of the model's first `LogitsProcessor` (a draft head's comes later)."""
    found = [module.org_vocab_size for module in model.modules() if isinstance(module, LogitsProcessor)]
    return found[0] if found else int(config.model_config.hf_text_config.vocab_size)
