"""From arguments to a running engine."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from bestiary.api.config import VllmConfig
from bestiary.api.entries import Resolution
from bestiary.api.errors import UsageError
from bestiary.api.hook_manager import HookManager
from bestiary.api.hooks import KINDS
from bestiary.api.lora import LoRARequest
from bestiary.api.registry import ModelRegistry, Registry
from bestiary.nn.graphs import StepRecorder, Together
from bestiary.nn.ops.registry import Target, choose_ops
from bestiary.nn.parallel import use_groups
from bestiary.nn.placement import finish
from bestiary.nn.weights.fill import num_weights

from .arguments import EngineArgs
from .binding import adapter_slots, bind_attention, check_lora, target_of
from .engine import LLMEngine
from .graphs import choose_recorder
from .loaded_model import LoadedModel
from .loader.description import ModelDescription, describe
from .loader.load import build_model, load_model
from .loader.progress import load_progress
from .loader.quantization import choose_quantization
from .loader.vllm_config import choose_device, make_vllm_config, parallel_config
from .model_layers import attention_layers
from .notices import notice
from .parallel.assembly import assemble
from .parallel.eplb import check_eplb
from .parallel.seat import Seat, device_index, take_seat
from .parallel.team import Team
from .pooler import pooler_of, with_pooler
from .pooling import with_runner


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
            eos_token_ids |= self.description.eos_token_ids
            loaded = LoadedModel(model, config, ops, team, slots, pooler, eos_token_ids, self._recorder)
            engine = loaded.engine(self.args, self.hooks)
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
