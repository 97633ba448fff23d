"""The configuration a model class receives, and the engine's own: frozen, keyword-only, checked once.

Field names follow vLLM's, because model files read them (`vllm_config.model_config.hf_config`, `cache_config`,
`quant_config`, `parallel_config.tensor_parallel_size` …). Facts found at run time (blocks that fit) are not here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from .errors import UsageError
from .pooling import PoolerConfig

if TYPE_CHECKING:
    import torch


Runner = Literal["generate", "pooling"]
"""What a model is run for: text, or a vector a prompt."""


def _at_least(owner: object, low: int, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise UsageError(f"{name} is too small", field=name, value=value, limit=f"an integer, at least {low}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model as a class sees it.

    Attributes:
        model: what the user named: a directory, a file, a hub id or a short name.
        architecture: the registry's name of the class.
        hf_config: the transformers configuration object (or an attribute bag for a type transformers does not know).
        hf_text_config: its text part; `hf_config` itself where there is none.
        dtype: of the weights and activations. weights_dtype: what matrices are kept in, where that is another: their
            products read it, and nothing is computed in it. max_model_len: prompt and answer together, in tokens.
        seed: of everything drawn at random. deterministic: logprobs bitwise independent of batch and schedule.
        use_mla: the model's keys and values are linear in a latent (`kv_lora_rank`), which is what may be kept of them.
        runner_type: whether it generates text or pools hidden states. pooler_config: how, where it pools.
    """

    model: str
    architecture: str
    hf_config: Any
    hf_text_config: Any
    dtype: torch.dtype
    weights_dtype: torch.dtype | None = None
    max_model_len: int
    seed: int = 0
    deterministic: bool = False
    revision: str | None = None
    runner_type: Runner = "generate"
    pooler_config: PoolerConfig | None = None
    use_mla: bool = False

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_model_len")


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """The paged KV cache: tokens a block, bytes in all (None: what fits), dtype ("auto": the model's), prefix cache."""

    block_size: int = 16
    memory_bytes: int | None = None
    num_blocks: int | None = None
    cache_dtype: str = "auto"
    enable_prefix_caching: bool = True
    sliding_window: int | None = None
    mamba_cache_dtype: str = "auto"
    mamba_ssm_cache_dtype: str = "auto"

    def __post_init__(self) -> None:
        _at_least(self, 1, "block_size")
        if self.num_blocks is not None:
            _at_least(self, 1, "num_blocks")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """How much one step may do: requests running, tokens computed, and whether a prompt may be computed in pieces; and
    whether a step is planned before the tokens of the one before it are known."""

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    enable_chunked_prefill: bool = True
    max_queue: int | None = None
    async_scheduling: bool = False

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_num_seqs", "max_num_batched_tokens")


@dataclass(frozen=True, kw_only=True)
class EPLBConfig:
    """Expert load balancing: spare expert copies, and how often placements are reconsidered.

    window_size: steps over which load is counted. step_interval: steps between two looks at it.
    """

    num_redundant_experts: int = 0
    window_size: int = 1000
    step_interval: int = 3000

    def __post_init__(self) -> None:
        _at_least(self, 0, "num_redundant_experts")
        _at_least(self, 1, "window_size", "step_interval")


EXECUTOR_BACKENDS = ("mp", "external_launcher", "ray")


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How many ranks share the model, and this process's place among them.

    Ranks count through tensor-parallel ones first, then pipeline stages, then copies of the model: ``rank = (copy *
    stages + stage) * tensor + place``. The tensor-parallel ranks of one stage are also those that experts are divided
    among (`enable_expert_parallel`).

    Attributes:
        pipeline_layers: layers of each stage; None divides them evenly.
        nnodes, node_rank: machines, and which of them this is; each runs an equal run of ranks.
        master_addr, master_port: where the first machine is met.
        distributed_executor_backend: who starts the ranks: "mp" this process, "external_launcher" torchrun, "ray" Ray.
        stall_timeout: seconds that one rank waits for another in the middle of a step.
    """

    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    enable_eplb: bool = False
    eplb_config: EPLBConfig = field(default_factory=EPLBConfig)
    use_sequence_parallel_moe: bool = False
    rank: int = 0
    pipeline_layers: tuple[int, ...] | None = None
    nnodes: int = 1
    node_rank: int = 0
    master_addr: str = "127.0.0.1"
    master_port: int = 29500
    distributed_executor_backend: str = "mp"
    stall_timeout: float = 120.0

    def __post_init__(self) -> None:
        _at_least(self, 1, "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "nnodes")
        _at_least(self, 0, "rank", "node_rank")
        if self.distributed_executor_backend not in EXECUTOR_BACKENDS:
            raise UsageError(
                "nobody starts ranks by that name", field="distributed_executor_backend",
                value=self.distributed_executor_backend, limit=" or ".join(EXECUTOR_BACKENDS),
            )  # fmt: skip
        layers = self.pipeline_layers
        if layers is not None and (len(layers) != self.pipeline_parallel_size or min(layers) < 1):
            raise UsageError(
                "one number of layers for each pipeline stage", field="pipeline_layers", value=list(layers),
                limit=f"{self.pipeline_parallel_size} numbers, each at least 1",
            )  # fmt: skip
        self._check_experts()
        if self.world_size_across_dp % self.nnodes:
            raise UsageError(
                f"{self.world_size_across_dp} ranks cannot be divided among {self.nnodes} machines",
                field="nnodes", value=self.nnodes, limit=f"a divisor of {self.world_size_across_dp}",
            )  # fmt: skip
        for name, limit in (("node_rank", self.nnodes), ("rank", self.world_size_across_dp)):
            if getattr(self, name) >= limit:
                raise UsageError(f"{name} is too large", field=name, value=getattr(self, name), limit=f"below {limit}")

    def _check_experts(self) -> None:
        """What is for experts that are divided among ranks needs experts that are."""
        asked = {"enable_eplb": self.enable_eplb, "num_redundant_experts": self.eplb_config.num_redundant_experts}
        for name, value in asked.items():
            if value and not (self.enable_expert_parallel and self.tensor_parallel_size > 1):
                raise UsageError(
                    f"{name} is for whole experts that lie on several ranks", field=name, value=value,
                    limit="with enable_expert_parallel, and a tensor_parallel_size of at least 2",
                    fix="enable_expert_parallel=True (--enable-expert-parallel), or leave it out",
                )  # fmt: skip

    @property
    def world_size(self) -> int:
        """Ranks of one copy of the model."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def world_size_across_dp(self) -> int:
        """All ranks."""
        return self.world_size * self.data_parallel_size

    @property
    def ranks_per_node(self) -> int:
        return self.world_size_across_dp // self.nnodes

    @property
    def tensor_parallel_rank(self) -> int:
        return self.rank % self.tensor_parallel_size

    @property
    def pipeline_parallel_rank(self) -> int:
        return self.rank % self.world_size // self.tensor_parallel_size

    @property
    def data_parallel_rank(self) -> int:
        return self.rank // self.world_size

    def sampler(self, copy: int) -> int:
        """The rank that draws the tokens of a copy of the model: the first one of its last stage."""
        return (copy + 1) * self.world_size - self.tensor_parallel_size


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Adapters beside the model.

    Attributes:
        max_loras: slots, which is how many different adapters one step computes with. max_lora_rank: the largest rank
            that a slot holds. max_cpu_loras: adapters kept in memory, in slots or ready to be put into one.
    """

    max_loras: int = 4
    max_lora_rank: int = 64
    max_cpu_loras: int = 64

    def __post_init__(self) -> None:
        _at_least(self, 1, "max_loras", "max_lora_rank")
        _at_least(self, self.max_loras, "max_cpu_loras")


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where the model lives: "cpu" or "cuda"."""

    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    """How weights are read: "auto", a weight format's name, or "dummy" (random).

    allow_nonfinite: NaN and Inf may pass. verify: files are compared with their published checksums first.
    """

    load_format: str = "auto"
    allow_nonfinite: bool = False
    verify: bool = False
    progress: bool = True


@dataclass(frozen=True, kw_only=True)
class OpConfig:
    """Which implementation of an op or attention backend to use, by name; anything not named is chosen at start."""

    attention_backend: str | None = None
    implementations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VllmConfig:
    """All of it: the one argument of every model class."""

    model_config: ModelConfig
    cache_config: CacheConfig = field(default_factory=CacheConfig)
    scheduler_config: SchedulerConfig = field(default_factory=SchedulerConfig)
    parallel_config: ParallelConfig = field(default_factory=ParallelConfig)
    device_config: DeviceConfig = field(default_factory=DeviceConfig)
    load_config: LoadConfig = field(default_factory=LoadConfig)
    op_config: OpConfig = field(default_factory=OpConfig)
    quant_config: Any = None
    lora_config: LoRAConfig | None = None
    speculative_config: Any = None

    @property
    def num_speculative_tokens(self) -> int:
        return 0 if self.speculative_config is None else int(self.speculative_config.num_speculative_tokens)
