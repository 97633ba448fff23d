"""What a model class must be to be served, in vLLM's vocabulary.

The protocols serve twice: as base classes of model files (``class MyModel(nn.Module, SupportsLoRA, SupportsPP)``; put
`nn.Module` first) and as the lists of members that `conformance.check` compares a class with. Three rules say what a
class owes:

* an annotation without a value (`packed_modules_mapping`) must be given by the class, or assigned in its `__init__`;
* an annotation with a value (`supports_lora = True`) is inherited;
* a method must be written by the class, unless `@provided` says that the one here is a working default.

Nothing here runs when a model does: no metaclass work beyond `typing.Protocol`'s, and no constructor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

from .provided import counted, derived, provided

if TYPE_CHECKING:
    import torch

    from .config import VllmConfig
    from .intermediate import IntermediateTensors

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

PoolingTypeStr: TypeAlias = Literal["LAST", "CLS", "MEAN", "ALL", "STEP"]
AttnTypeStr: TypeAlias = Literal["decoder", "encoder", "encoder_only", "encoder_decoder"]
MultiModalEmbeddings: TypeAlias = "Sequence[torch.Tensor] | torch.Tensor | tuple[torch.Tensor, ...]"


@runtime_checkable
class VllmModel(Protocol[T_co]):
    """Every model: built from one configuration, embeds ids, runs forward over a flat batch of tokens."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        """`prefix` is the module's name in the checkpoint; the build scope supplies the rest."""

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Token ids ``[tokens]`` → ``[tokens, hidden]``."""
        ...

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> T_co:
        """Ids and positions, both ``[tokens]`` → hidden states ``[tokens, hidden]``."""
        ...


@runtime_checkable
class VllmModelForTextGeneration(VllmModel[T], Protocol[T]):
    """A model with a language-model head."""

    def compute_logits(self, hidden_states: T) -> T | None:
        """Hidden states ``[rows, hidden]`` → logits ``[rows, vocabulary]``; None on ranks that hold no logits."""
        ...


@runtime_checkable
class VllmModelForPooling(VllmModel[T_co], Protocol[T_co]):
    """A model whose answer is a vector or a score a prompt."""

    is_pooling_model: ClassVar[Literal[True]] = True
    default_pooling_type: ClassVar[PoolingTypeStr] = "LAST"
    attn_type: ClassVar[AttnTypeStr] = "decoder"
    pooler: Any


@runtime_checkable
class SupportsLoRA(Protocol):
    """Adapters fit the model's linear layers.

    `packed_modules_mapping` is the one statement of what is fused (``{"qkv_proj": ["q_proj", "k_proj", "v_proj"]}``; an
    empty dict says: nothing). `embedding_modules` names embedding layers and their adapter names.
    """

    supports_lora: ClassVar[Literal[True]] = True
    packed_modules_mapping: dict[str, list[str]]
    embedding_modules: dict[str, str] = {}  # noqa: RUF012  an instance attribute by contract, never changed
    lora_skip_prefixes: ClassVar[Sequence[str]] = ()
    is_3d_moe_weight: ClassVar[bool] = False
    is_non_gated_moe: ClassVar[bool] = False


@runtime_checkable
class SupportsPP(Protocol):
    """The layers can be cut into pipeline stages."""

    supports_pp: ClassVar[Literal[True]] = True

    def make_empty_intermediate_tensors(
        self, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> IntermediateTensors:
        """Zeros of the shapes a stage receives; needed for profiling and graph capture."""
        ...

    if TYPE_CHECKING:  # a model's own forward has more parameters, which a type checker would refuse as an override

        def forward(self, *args: Any, **kwargs: Any) -> Any: ...

    else:

        def forward(self, *, intermediate_tensors: IntermediateTensors | None) -> IntermediateTensors | None:
            """Takes what the previous stage sent (None on the first); all but the last return the same kind."""
            ...


@runtime_checkable
class SupportsMultiModal(Protocol):
    """The model reads images, audio or video beside text."""

    supports_multimodal: ClassVar[Literal[True]] = True
    supports_multimodal_raw_input_only: ClassVar[bool] = False
    supports_encoder_tp_data: ClassVar[bool] = False
    merge_by_field_config: ClassVar[bool] = False
    multimodal_cpu_fields: ClassVar[Set[str]] = frozenset()
    _processor_factory: ClassVar[Any] = None

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """The text that stands for item `i` (from 0) of `modality` in a prompt."""
        ...

    def embed_multimodal(self, **kwargs: object) -> MultiModalEmbeddings:
        """One ``[positions, hidden]`` tensor an item."""
        ...

    def get_language_model(self) -> VllmModel[Any]:
        """The text part."""
        ...

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: MultiModalEmbeddings | None = None,
        *,
        is_multimodal: torch.Tensor | None = None,
        handle_oov_mm_token: bool = False,
    ) -> torch.Tensor:
        """Token embeddings with the positions where `is_multimodal` holds replaced, in order."""
        ...


@runtime_checkable
class SupportsQuant(Protocol):
    """The model reads checkpoints quantized before fusion; names and fusions are translated by the two mappings."""

    supports_quant: ClassVar[Literal[True]] = True
    packed_modules_mapping: dict[str, list[str]] = {}  # noqa: RUF012  an instance attribute by contract
    hf_to_vllm_mapper: ClassVar[Any] = None
    quant_config: Any = None


@runtime_checkable
class MixtureOfExperts(Protocol):
    """Some layers choose among experts. Logical experts are the checkpoint's; physical ones include spare copies.

    A class that inherits this and uses `FusedMoE` need write none of it: the layers are found, and counted.
    """

    is_mixture_of_experts: ClassVar[Literal[True]] = True
    moe_layers: Any = derived(lambda model: [each for each in model.modules() if getattr(each, "is_moe_layer", False)])
    num_moe_layers: int = derived(lambda model: len(model.moe_layers))
    num_logical_experts: int = counted("num_logical")
    num_physical_experts: int = counted("num_physical")
    num_local_physical_experts: int = counted("num_local")
    num_routed_experts: int = derived(lambda model: model.num_logical_experts)
    num_shared_experts: int = 0
    num_redundant_experts: int = counted("num_redundant")
    num_expert_groups: int = 1

    @provided
    def update_physical_experts_metadata(self, num_physical_experts: int, num_local_physical_experts: int) -> None:
        """The number of expert copies changed, over all ranks and on this one."""
        self.num_physical_experts = num_physical_experts
        self.num_local_physical_experts = num_local_physical_experts
        self.num_redundant_experts = num_physical_experts - self.num_logical_experts


@runtime_checkable
class HasInnerState(Protocol):
    """The model keeps state beside the KV cache, a request."""

    has_inner_state: ClassVar[Literal[True]] = True


@runtime_checkable
class IsAttentionFree(Protocol):
    """No layer attends, so there is no KV cache."""

    is_attention_free: ClassVar[Literal[True]] = True


@runtime_checkable
class IsHybrid(Protocol):
    """Attention and state-space layers together; the shapes of the latter's state come from the configuration alone."""

    is_hybrid: ClassVar[Literal[True]] = True

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: VllmConfig) -> tuple[tuple[int, ...], ...]:
        """Shapes of one request's state in one layer, on one rank."""
        ...

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: VllmConfig) -> tuple[torch.dtype, ...]:
        """Their dtypes, in the same order."""
        ...


@runtime_checkable
class SupportsCrossEncoding(Protocol):
    """A pooling model that scores a pair of texts read together."""

    supports_cross_encoding: ClassVar[Literal[True]] = True


@runtime_checkable
class SupportsEagle(Protocol):
    """A target whose last hidden states feed an EAGLE draft (arXiv 2401.15077)."""

    supports_eagle: ClassVar[Literal[True]] = True
    has_own_lm_head: bool = False
    has_own_embed_tokens: bool = False


@runtime_checkable
class SupportsEagle3(Protocol):
    """A target that also hands hidden states of inner layers to its draft (EAGLE-3, arXiv 2503.01840).

    The defaults expect the inner model as `self.model`, an `EagleModelMixin` with its layers in `layers`.
    """

    supports_eagle3: ClassVar[Literal[True]] = True
    has_own_lm_head: bool = False
    has_own_embed_tokens: bool = False

    @provided
    def set_aux_hidden_state_layers(self, layers: tuple[int, ...]) -> None:
        """Which layers' inputs to hand out."""
        inner: EagleModelMixin = self.model  # type: ignore[attr-defined]
        inner.aux_hidden_state_layers = tuple(layers)

    @provided
    def get_eagle3_default_aux_hidden_state_layers(self) -> tuple[int, ...]:
        """An early, a middle and a late layer: the paper's choice."""
        count = len(self.model.layers)  # type: ignore[attr-defined]
        return (2, count // 2, count - 3)


class EagleModelMixin:
    """Collects the hidden states of chosen layers while an inner model walks through its stack."""

    aux_hidden_state_layers: tuple[int, ...] = ()

    def _set_aux_hidden_state_layers(self, layers: tuple[int, ...]) -> None:
        self.aux_hidden_state_layers = tuple(layers)

    def _maybe_add_hidden_state(
        self, collected: list[torch.Tensor], layer: int, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Appends what layer number `layer` is about to read, if it was chosen; returns `collected`."""
        if layer in self.aux_hidden_state_layers:
            collected.append(hidden_states if residual is None else hidden_states + residual)
        return collected


@runtime_checkable
class IsDraftModel(Protocol):
    """Proposes tokens that another model verifies; never served alone."""

    is_draft_model: ClassVar[Literal[True]] = True


@runtime_checkable
class IsTransformersBacked(Protocol):
    """Runs a transformers modelling class behind our layers instead of a file of its own."""

    is_transformers_backed: ClassVar[Literal[True]] = True


MARKERS: Mapping[str, type] = {
    "is_pooling_model": VllmModelForPooling,
    "supports_lora": SupportsLoRA,
    "supports_pp": SupportsPP,
    "supports_multimodal": SupportsMultiModal,
    "supports_quant": SupportsQuant,
    "is_mixture_of_experts": MixtureOfExperts,
    "has_inner_state": HasInnerState,
    "is_attention_free": IsAttentionFree,
    "is_hybrid": IsHybrid,
    "supports_cross_encoding": SupportsCrossEncoding,
    "supports_eagle": SupportsEagle,
    "supports_eagle3": SupportsEagle3,
    "is_draft_model": IsDraftModel,
    "is_transformers_backed": IsTransformersBacked,
}
"""The class attribute by which a model claims a protocol → the protocol."""
