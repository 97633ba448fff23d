"""One tiny Llama by transformers, and what is done to it: saved, its layers' weights replaced, its logits taken."""

import json

import torch
import transformers
from safetensors.torch import save_file

from bestiary import LLM
from bestiary.testing.logits import prompt_logits

IDS = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26]
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 64,
}  # fmt: skip


def llama(**changes):
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL | changes)).eval()


def bloom():
    torch.manual_seed(0)
    return transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=128, hidden_size=64, n_layer=2, n_head=4))


def mixtral():
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SMALL, num_local_experts=3, num_experts_per_tok=3)
    return transformers.MixtralForCausalLM(config).eval()


def save(folder, config, tensors, quantization):
    """A model directory with a `quantization_config`."""
    folder.mkdir(exist_ok=True)
    data = {**config.to_dict(), "architectures": [type_of(config)], "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(data, default=str))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return str(folder)


def type_of(config):
    return f"{config.model_type.title()}ForCausalLM"


def ours(path, **options):
    """Our logits for `IDS`."""
    plain = {"dtype": "float32", "device": "cpu", "skip_tokenizer_init": True, "progress": False}
    llm = LLM(str(path), **{**plain, **options})
    try:
        return prompt_logits(llm, IDS).float()
    finally:
        llm.close()


def theirs(model):
    with torch.inference_mode():
        return model(torch.tensor([IDS])).logits[0].float()


def off(got, want):
    """The largest difference, relative to the largest logit."""
    return float((got - want).abs().max() / want.abs().max())
