"""T0, the work-horse: a random Llama of 0.2 million parameters with a real tokenizer and a chat template.

Its answers are noise, which is what these tests want: bytes that are no UTF-8, early ends of text, no repetition.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB = 512
TOKENS = 500
"""Ids that the tokenizer has; the model's logits are wider, as those of many models are."""
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CONTEXT = 1024
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_OTHER_SCRIPTS = "Ελληνικά, русский, 中文字符, 日本語, עברית, العربية, हिन्दी, 🦉🐉🦄 naïve café œuvre “quotes” – ½ € "


def write_t0(folder: Path, *, vocab_size: int = VOCAB, seed: int = 11) -> Path:
    """Write the checkpoint; returns `folder`."""
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=vocab_size, max_position_embeddings=CONTEXT, initializer_range=0.3, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_level(), eos_token=SPECIAL[2], additional_special_tokens=list(SPECIAL),
        chat_template=CHATML,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def byte_level() -> Tokenizer:
    """All bytes, and what byte pairs of some English and a few other scripts make of them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    english = files("bestiary.bench").joinpath("perplexity.txt").read_text("utf-8")
    tokenizer.train_from_iterator([english, _OTHER_SCRIPTS * 20], trainer)
    return tokenizer
