"""Published shapes of models, as their `config.json` has them; weights are random, so nothing has to be fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bestiary.serve.llm import LLM

Shape = Mapping[str, Any]

_QWEN3: Shape = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "vocab_size": 151936, "head_dim": 128,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "hidden_act": "silu",
    "num_key_value_heads": 8,
}  # fmt: skip

SHAPES: Mapping[str, Shape] = {
    "llama-3-8b": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
    "qwen3-0.6b": {
        **_QWEN3, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "tie_word_embeddings": True,
    },
    "qwen3-8b": {
        **_QWEN3, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "tie_word_embeddings": False,
    },
    "qwen3-30b-a3b": {
        **_QWEN3, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 2048,
        "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4,
        "num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [], "tie_word_embeddings": False,
    },
}  # fmt: skip


def tiny(shape: Shape) -> Shape:
    """The same architecture, small enough to try the command on a laptop."""
    small = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    }  # fmt: skip
    experts = (
        {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32} if "num_experts" in shape else {}
    )
    return {**shape, **small, **experts}


@contextmanager
def engine(shape: Shape, **options: Any) -> Iterator[LLM]:
    """An engine with random weights of that shape, closed afterwards."""
    from bestiary.serve.llm import LLM

    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(dumps({**shape, "torch_dtype": "bfloat16"}), "utf-8")
        plain = {"load_format": "dummy", "skip_tokenizer_init": True, "progress": False, "enable_prefix_caching": False}
        with LLM(folder, **{**plain, **options}) as llm:
            yield llm
