"""Two tiny models whose layers keep states: one of these alone, and one that attends as well."""

import json

import torch
from safetensors.torch import save_file
from torch import nn

from bestiary.nn.attention.layer import Attention
from bestiary.nn.embedding import ParallelLMHead, VocabParallelEmbedding
from bestiary.nn.linear import ReplicatedLinear
from bestiary.nn.logits import LogitsProcessor
from bestiary.nn.state import StateLayer, StateSpec

WIDTH, VOCAB, FADE = 32, 61, 0.9


class FadingSum(StateLayer):
    """``s_t = 0.9 s_{t-1} + x_t``, plus the number of tokens so far: a state of two tensors with two dtypes."""

    def get_state_spec(self):
        return StateSpec(shapes=((WIDTH,), ()), dtypes=(torch.float32, torch.float64))

    def forward(self, x):
        sums, counts = self.read_states()
        outs, at = [], 0
        for row, length in enumerate(self.metadata.query_lens_host):
            for token in range(at, at + length):
                sums[row] = FADE * sums[row] + x[token]
                counts[row] += 1
                outs.append(sums[row] + counts[row].sin().float())
            at += length
        self.write_states(sums, counts)
        return torch.stack(outs)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = ReplicatedLinear(WIDTH, 3 * WIDTH, bias=False, return_bias=False)
        self.attn = Attention(2, WIDTH // 2, (WIDTH // 2) ** -0.5, num_kv_heads=2)

    def forward(self, x):
        return self.attn(*self.qkv(x).chunk(3, -1))


class Stateful(nn.Module):
    def __init__(self, *, vllm_config, prefix=""):
        super().__init__()
        self.embed = VocabParallelEmbedding(VOCAB, WIDTH)
        self.layers = nn.ModuleList(self.make_layers())
        self.lm_head = ParallelLMHead(VOCAB, WIDTH)
        self.logits_processor = LogitsProcessor(VOCAB)

    def make_layers(self):
        return [FadingSum(), FadingSum()]

    def embed_input_ids(self, input_ids):
        return self.embed(input_ids)

    def forward(self, input_ids, positions, intermediate_tensors=None, inputs_embeds=None):
        x = self.embed_input_ids(input_ids)
        for layer in self.layers:
            x = torch.tanh(x + layer(x))
        return x

    def compute_logits(self, hidden_states):
        return self.logits_processor(self.lm_head, hidden_states)


class Hybrid(Stateful):
    def make_layers(self):
        return [FadingSum(), Attending(), FadingSum()]


def save(folder, model_class):
    """A model directory with random weights; returns them."""
    generator = torch.Generator().manual_seed(3)
    weights = {
        "embed.weight": torch.randn(VOCAB, WIDTH, generator=generator),
        "lm_head.weight": torch.randn(VOCAB, WIDTH, generator=generator),
    }
    if model_class is Hybrid:
        weights["layers.1.qkv.weight"] = torch.randn(3 * WIDTH, WIDTH, generator=generator)
    config = {
        "architectures": [model_class.__name__], "model_type": "stateful", "vocab_size": VOCAB, "hidden_size": WIDTH,
        "max_position_embeddings": 128, "torch_dtype": "float32", "eos_token_id": 0,
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return weights


def logits_of(weights, ids):
    """What `Stateful` computes, written down without it."""
    x = weights["embed.weight"][ids]
    for _ in range(2):
        state, outs = torch.zeros(WIDTH), []
        for count, each in enumerate(x, start=1):
            state = FADE * state + each
            outs.append(torch.tanh(each + state + torch.tensor(float(count), dtype=torch.float64).sin().float()))
        x = torch.stack(outs)
    return x @ weights["lm_head.weight"].T
