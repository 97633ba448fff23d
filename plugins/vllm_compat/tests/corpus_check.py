"""One question for every file of the corpus: through the engine, is it the model that transformers computes?"""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import bestiary_vllm
from bestiary import LLM, SamplingParams
from bestiary.api import ModelRegistry
from bestiary.testing.logits import prompt_logits
from bestiary.testing.reference import randomize, reference_logits, save_reference, transformers_reference

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 211,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LENGTHS = (1, 5, 17, 40)


def model_class(module: str, name: str) -> type:
    """A class of the corpus, imported as a package of model files for vLLM is."""
    with bestiary_vllm.serving():
        return getattr(importlib.import_module(f"corpus_vllm.{module}"), name)


def reference_of(folder: Path, architecture: str, config: dict) -> nn.Module:
    """transformers' model, and in `folder` its checkpoint."""
    reference = _random(config, architecture)
    save_reference(reference, folder, config, architecture)
    return reference


def rewritten(folder: Path, architecture: str, config: dict, fields: dict, rewrite: Callable) -> nn.Module:
    """transformers' model, and in `folder` its checkpoint as another convention has it.

    fields: what `config.json` says instead of `config`. rewrite: from the model to the tensors of the checkpoint.
    """
    reference = _random(config, architecture)
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in rewrite(reference).items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**fields, "architectures": [architecture]}))
    return reference


def _random(config: dict, architecture: str) -> nn.Module:
    torch.manual_seed(0)
    reference = transformers_reference(config, architecture).eval()
    randomize(reference)
    return reference


def engine(folder: Path, architecture: str, module: str, name: str | None = None, **options) -> LLM:
    """An engine of `folder` with the class of `module` called `name`, or as its architecture."""
    ModelRegistry.register_model(architecture, model_class(module, name or architecture))
    plain = {"kernels": "torch", "dtype": "float32", "device": "cpu", "skip_tokenizer_init": True, "progress": False}
    return LLM(str(folder), **plain | options)


def check_equal(
    folder: Path, architecture: str, module: str, config: dict, atol: float = 1e-4, name: str | None = None, **options
) -> LLM:
    """An engine of transformers' model of `config`, found equal to it. Returns the engine."""
    reference = reference_of(folder, architecture, config)
    return agree(engine(folder, architecture, module, name, **options), reference, atol)


def agree(llm: LLM, reference: nn.Module, atol: float = 1e-4) -> LLM:
    """The engine has the reference's logits, whole and in pieces, and its greedy tokens in a batch, with the prefix
    cache warm as well."""
    prompts = [prompt(length) for length in LENGTHS]
    for ids in prompts:
        want = reference_logits(reference, ids)
        torch.testing.assert_close(prompt_logits(llm, ids).float(), want, atol=atol, rtol=1e-4)
        torch.testing.assert_close(prompt_logits(llm, ids, chunk=3).float(), want, atol=atol, rtol=1e-4)
    greedy = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
    for _ in range(2):
        answers = llm.generate([{"prompt_token_ids": ids} for ids in prompts], greedy)
        for ids, answer in zip(prompts, answers, strict=True):
            known = list(ids)
            for token in answer.outputs[0].token_ids:
                scores = reference_logits(reference, known)[-1]
                assert scores.max() - scores[token] < 10 * atol, "another token than transformers'"
                known.append(token)
    return llm


def prompt(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return torch.randint(0, SIZES["vocab_size"], (length,), generator=generator).tolist()


def answers_as(llm: LLM, reference: nn.Module, **options) -> None:
    """The engine's greedy tokens are the reference's."""
    prompts = [prompt(length) for length in (1, 5, 17)]
    greedy = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    found = llm.generate([{"prompt_token_ids": ids} for ids in prompts], greedy, use_tqdm=False, **options)
    for ids, answer in zip(prompts, found, strict=True):
        known = list(ids)
        for token in answer.outputs[0].token_ids:
            scores = reference_logits(reference, known)[-1]
            assert scores.max() - scores[token] < 1e-3, "another token than transformers'"
            known.append(token)
