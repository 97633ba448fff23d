"""The first Qwen's tokenizer and its chats, from a directory laid out as the published ones are."""

import base64
import json
import unicodedata

import pytest

from bestiary import LLM, SamplingParams
from qwen_plugin.reference import SMALL, ReferenceQwen

TOKENS = [bytes([byte]) for byte in range(256)] + [
    token.encode() for token in ("th", "the", "He", "ll", "llo", " w", "or", " wor", "é", "  ", "\n\n", "user", "you")
]
FIRST_SPECIAL = len(TOKENS)  # 151643 in the published file
END, START, STOP = FIRST_SPECIAL, FIRST_SPECIAL + 1, FIRST_SPECIAL + 2
PUBLISHED = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"""
    r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
TEXTS = [
    "",
    "Hello world",
    "the  other\n\n12 words, isn't it?",
    "e\u0301té",
    "你好 \U0001f600",
    "a<|extra_0|>b",
    "\r\n \t x ",
]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen")
    fields = SMALL | {"vocab_size": FIRST_SPECIAL + 208, "num_hidden_layers": 1, "max_position_embeddings": 256}
    ReferenceQwen(fields | {"tokenizer_type": "QWenTokenizer", "auto_map": {"AutoModel": "modeling_qwen.X"}}).save(
        folder
    )
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(TOKENS)]
    (folder / "qwen.tiktoken").write_text("".join(lines))
    config = {"model_max_length": 8192, "tokenizer_class": "QWenTokenizer",
              "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"chat_format": "chatml", "eos_token_id": END}))
    for name in ("tokenization_qwen.py", "modeling_qwen.py"):
        (folder / name).write_text("raise SystemExit('code of the directory was run')\n")
    return LLM(str(folder), dtype="float32", progress=False)


def test_texts_equal_the_tiktoken_library(llm):
    tiktoken = pytest.importorskip("tiktoken")
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
    theirs = tiktoken.Encoding(
        "Qwen",
        pat_str=PUBLISHED,
        mergeable_ranks={token: rank for rank, token in enumerate(TOKENS)},
        special_tokens={name: FIRST_SPECIAL + index for index, name in enumerate(names)},
    )
    ours = llm.get_tokenizer()
    for text in TEXTS:
        ids = theirs.encode(unicodedata.normalize("NFC", text), allowed_special="all")
        assert ours.encode(text) == ids
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    assert ours.vocab_size == theirs.n_vocab == FIRST_SPECIAL + 208


def test_what_ends_an_answer(llm):
    tokenizer = llm.get_tokenizer()
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (END, None)
    assert llm.engine.eos_token_ids == {END, STOP}


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_chats_are_laid_out_as_published(llm, system):
    tokenizer = llm.get_tokenizer()

    def turn(role, content):
        return [START, *tokenizer.encode(role), *tokenizer.encode("\n"), *tokenizer.encode(content), STOP, ord("\n")]

    messages = [
        {"role": "user", "content": "Hello world"},
        {"role": "assistant", "content": "the"},
        {"role": "user", "content": "you?"},
    ]
    want = turn("system", system or "You are a helpful assistant.")
    for message in messages:
        want += turn(message["role"], message["content"])
    want += [START, *tokenizer.encode("assistant"), ord("\n")]
    given = [{"role": "system", "content": system}, *messages] if system else messages
    assert llm.chat_ids(given) == want
    (output,) = llm.chat(given, SamplingParams(max_tokens=4, temperature=0), use_tqdm=False)
    assert output.prompt_token_ids == want
    assert output.finished
