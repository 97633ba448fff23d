"""Ring 1: all that a modelling file may import. Names and signatures follow vLLM's authoring vocabulary."""

from .activation import (
    XIELU,
    ActAndMul,
    FatreluAndMul,
    GeluAndMul,
    GeluAndMulSparse,
    MulAndSilu,
    SiluAndMul,
    SiluAndMulWithClamp,
    SwigluStepAndMul,
    get_act_and_mul_fn,
    get_act_fn,
)
from .attention.alibi import get_alibi_slopes
from .attention.backend import AttentionType
from .attention.base import AttentionLayerBase
from .attention.kinds import ChunkedLocalAttention, PrefillPrefixLMAttention, StaticSinkAttention
from .attention.latent import MLAAttention
from .attention.latent_block import MLAModules, MultiHeadLatentAttentionWrapper
from .attention.layer import Attention, EncoderOnlyAttention
from .context import get_forward_context
from .embedding import DEFAULT_VOCAB_PADDING_SIZE, ParallelLMHead, VocabParallelEmbedding
from .linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from .logits import LogitsProcessor
from .moe import ExpertPlacement, FusedMoE, GateLinear
from .norm import GemmaRMSNorm, LayerNorm, RMSNorm
from .parallel import (
    get_dp_group,
    get_ep_group,
    get_pp_group,
    get_tensor_model_parallel_rank,
    get_tensor_model_parallel_world_size,
    get_tp_group,
    split_tensor_along_last_dim,
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
)
from .pooling import (
    DispatchPooler,
    Pooler,
    PoolingItem,
    PoolingMetadata,
    PoolingMethod,
    SequencePooler,
    pooler_for_classify,
    pooler_for_embed,
)
from .quant import QuantizationConfig, QuantizeMethodBase, UnquantizedLinearMethod
from .rotary import RotaryEmbedding, get_rope
from .scope import build_scope, get_current_vllm_config
from .stack import (
    PPMissingLayer,
    extract_layer_index,
    is_pp_missing_parameter,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from .state import (
    GatedDeltaNetAttention,
    MambaMixer,
    MambaMixer2,
    Mixer2RMSNormGated,
    OlmoHybridGatedDeltaNetAttention,
    RMSNormGated,
    ShortConv,
    StateLayer,
    StateSpec,
    read_states,
    write_states,
)
from .weights import AutoWeightsLoader, WeightsMapper, default_weight_loader, set_weight_attrs

__all__ = [
    "DEFAULT_VOCAB_PADDING_SIZE",
    "XIELU",
    "ActAndMul",
    "Attention",
    "AttentionLayerBase",
    "AttentionType",
    "AutoWeightsLoader",
    "ChunkedLocalAttention",
    "ColumnParallelLinear",
    "DispatchPooler",
    "EncoderOnlyAttention",
    "ExpertPlacement",
    "FatreluAndMul",
    "FusedMoE",
    "GateLinear",
    "GatedDeltaNetAttention",
    "GeluAndMul",
    "GeluAndMulSparse",
    "GemmaRMSNorm",
    "LayerNorm",
    "LogitsProcessor",
    "MLAAttention",
    "MLAModules",
    "MambaMixer",
    "MambaMixer2",
    "MergedColumnParallelLinear",
    "Mixer2RMSNormGated",
    "MulAndSilu",
    "MultiHeadLatentAttentionWrapper",
    "OlmoHybridGatedDeltaNetAttention",
    "PPMissingLayer",
    "ParallelLMHead",
    "Pooler",
    "PoolingItem",
    "PoolingMetadata",
    "PoolingMethod",
    "PrefillPrefixLMAttention",
    "QKVParallelLinear",
    "QuantizationConfig",
    "QuantizeMethodBase",
    "RMSNorm",
    "RMSNormGated",
    "ReplicatedLinear",
    "RotaryEmbedding",
    "RowParallelLinear",
    "SequencePooler",
    "ShortConv",
    "SiluAndMul",
    "SiluAndMulWithClamp",
    "StateLayer",
    "StateSpec",
    "StaticSinkAttention",
    "SwigluStepAndMul",
    "UnquantizedLinearMethod",
    "VocabParallelEmbedding",
    "WeightsMapper",
    "build_scope",
    "default_weight_loader",
    "extract_layer_index",
    "get_act_and_mul_fn",
    "get_act_fn",
    "get_alibi_slopes",
    "get_current_vllm_config",
    "get_dp_group",
    "get_ep_group",
    "get_forward_context",
    "get_pp_group",
    "get_rope",
    "get_tensor_model_parallel_rank",
    "get_tensor_model_parallel_world_size",
    "get_tp_group",
    "is_pp_missing_parameter",
    "make_empty_intermediate_tensors_factory",
    "make_layers",
    "maybe_prefix",
    "pooler_for_classify",
    "pooler_for_embed",
    "read_states",
    "set_weight_attrs",
    "split_tensor_along_last_dim",
    "tensor_model_parallel_all_gather",
    "tensor_model_parallel_all_reduce",
    "write_states",
]
