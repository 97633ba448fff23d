"""The first Qwen in plain torch, without cache or batch: from its paper (arXiv 2309.16609) and from what its published
modelling code does. Shares nothing with the model file; parameters bear the checkpoint's names. What the contract
compares with, since transformers does not carry this model.

A sequence is computed whole each time. `prompt_len` is the length that the published code sees when it reads the
prompt, and by which it fixes the rotary base for the answer too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

SMALL: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "vocab_size": 211,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "kv_channels": 16,
    "seq_length": 16,
    "max_position_embeddings": 128,
    "layer_norm_epsilon": 1e-6,
    "rotary_pct": 1.0,
    "rotary_emb_base": 10000,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "no_bias": True,
    "scale_attn_weights": True,
    "tie_word_embeddings": False,
}


class Norm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


def rotation(config: Any, length: int, prompt_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines ``[length, rotated channels]``; of scalings in `rope_parameters`, which are ours, LongRoPE."""
    dim = int(config.kv_channels * config.rotary_pct)
    base, factors, scale = config.rotary_emb_base, torch.ones(dim // 2), 1.0
    if config.use_dynamic_ntk:
        alpha = max(2 ** math.ceil(math.log(prompt_len / config.seq_length, 2) + 1) - 1, 1)
        base = base * alpha ** (dim / (dim - 2))
    elif scaling := getattr(config, "rope_parameters", None):
        original = scaling["original_max_position_embeddings"]
        factors = torch.tensor(scaling["long_factor"])
        scale = math.sqrt(1 + math.log(config.max_position_embeddings / original) / math.log(original))
    frequencies = 1.0 / (factors * base ** (torch.arange(0, dim, 2).float() / dim))
    angles = torch.outer(torch.arange(length).float(), frequencies)
    angles = torch.cat((angles, angles), -1)
    return angles.cos() * scale, angles.sin() * scale


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`x` is ``[length, heads, channels]``."""
    turning, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    one, other = turning.chunk(2, -1)
    turned = turning * cos[:, None] + torch.cat((-other, one), -1) * sin[:, None]
    return torch.cat((turned, rest), -1)


class Attention(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.kv_channels * config.num_attention_heads)
        self.c_proj = nn.Linear(
            config.kv_channels * config.num_attention_heads, config.hidden_size, bias=not config.no_bias
        )

    def forward(self, x: torch.Tensor, prompt_len: int) -> torch.Tensor:
        config, length = self.config, x.shape[0]
        q, k, v = (part.view(length, config.num_attention_heads, -1) for part in self.c_attn(x).chunk(3, -1))
        cos, sin = rotation(config, length, prompt_len)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if config.use_logn_attn:
            count = config.seq_length
            scale = [math.log(seen, count) if seen > count else 1.0 for seen in range(1, length + 1)]
            q = q * torch.tensor(scale)[:, None, None]
        scores = torch.einsum("qhc,khc->hqk", q, k)
        if config.scale_attn_weights:
            scores = scores / math.sqrt(config.kv_channels)
        scores = scores + torch.full((length, length), -math.inf).triu(1)
        return self.c_proj(torch.einsum("hqk,khc->qhc", scores.softmax(-1), v).flatten(1))


class MLP(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        width, bias = config.intermediate_size // 2, not config.no_bias
        self.w1 = nn.Linear(config.hidden_size, width, bias=bias)
        self.w2 = nn.Linear(config.hidden_size, width, bias=bias)
        self.c_proj = nn.Linear(width, config.hidden_size, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.w1(x) * F.silu(self.w2(x)))


class Block(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.ln_1, self.attn = Norm(config.hidden_size, config.layer_norm_epsilon), Attention(config)
        self.ln_2, self.mlp = Norm(config.hidden_size, config.layer_norm_epsilon), MLP(config)

    def forward(self, x: torch.Tensor, prompt_len: int) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x), prompt_len)
        return x + self.mlp(self.ln_2(x))


class ReferenceQwen(nn.Module):
    """`fields` are those of `config.json`; weights are random, biases and norms too."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.fields = fields
        config = self.config = SimpleNamespace(**fields)
        blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.transformer: Any = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.hidden_size),
                "h": blocks,
                "ln_f": Norm(config.hidden_size, config.layer_norm_epsilon),
            }
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            centre = 1.0 if ".ln_" in name else 0.0
            nn.init.normal_(parameter, centre, 0.2)
        if config.tie_word_embeddings:
            embedding: Any = self.transformer["wte"]
            self.lm_head.weight = embedding.weight
        self.requires_grad_(False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits ``[1, tokens, vocabulary]`` of ids ``[1, tokens]``, all of them a prompt."""
        return self.logits(input_ids[0].tolist())[None]

    def logits(self, ids: Sequence[int], prompt_len: int | None = None) -> torch.Tensor:
        """Logits ``[tokens, vocabulary]`` of one sequence of token ids whose first `prompt_len` were the prompt."""
        x = self.transformer["wte"](torch.tensor(ids))
        for block in self.transformer["h"]:
            x = block(x, prompt_len or len(ids))
        return self.lm_head(self.transformer["ln_f"](x))

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The most likely continuation, token by token."""
        tokens = list(ids)
        for _ in range(count):
            tokens.append(int(self.logits(tokens, len(ids))[-1].argmax()))
        return tokens[len(ids) :]

    def save(self, folder: Path) -> None:
        """A checkpoint as the published ones are laid out, in one file."""
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.fields))
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        if self.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        save_file(tensors, folder / "model.safetensors")
