"""A tokenizer from the files of a model directory.

`tokenizer.json` describes everything that turns text into ids. `tokenizer_config.json` (and, in older checkpoints,
`special_tokens_map.json` and `added_tokens.json`) name the special tokens, and `generation_config.json` and
`config.json` further ids that end an answer. Checkpoints older than `tokenizer.json` hold `vocab.json` and
`merges.txt`, a SentencePiece file, or a file of ranks that an installed package describes (the hook `tokenizers`).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bestiary.api.errors import BrokenPlugin, ConfigError
from bestiary.api.hooks import TiktokenVocabulary
from bestiary.serve.text.files import TOKENIZER_LIMIT, read_json, read_text
from bestiary.serve.text.pre_tokenizers import build_pre_tokenizer
from bestiary.serve.text.tiktoken_ranks import load_tiktoken
from bestiary.serve.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

    from bestiary.api.hook_manager import HookManager

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_VOCABULARY_CLASSES = {"GPT2Tokenizer": "gpt-2", "Qwen2Tokenizer": "qwen2"}
_VOCABULARY_MODELS = {"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer"}


def has_tokenizer(directory: Path, hooks: HookManager | None = None) -> bool:
    """Whether the directory holds a tokenizer in any of the known forms."""
    names = ("tokenizer.json", "vocab.json", *_SENTENCEPIECE_FILES)
    if any((directory / name).is_file() for name in names):
        return True
    return _offered(directory, read_json(directory / "tokenizer_config.json"), hooks) is not None


def load_directory_tokenizer(directory: Path, hooks: HookManager | None = None) -> Tokenizer:
    """The directory's tokenizer. Raises `ConfigError` naming the file and the field that is missing or wrong."""
    config = read_json(directory / "tokenizer_config.json")
    named = {**config} if "added_tokens_decoder" in config else {**config, **_special_tokens_map(directory)}
    offered = _offered(directory, config, hooks)
    backend = _load_backend(directory, config) if offered is None else load_tiktoken(offered, directory)
    _add_missing_tokens(backend, directory, named)
    bos, eos = (_content(named.get(name), name) for name in ("bos_token", "eos_token"))
    ends, template = _eos_token_ids(directory), _chat_template(directory, config)
    if offered is not None:
        eos, template = eos or offered.eos_token, template or offered.chat_template
        ends += [end for token in offered.stop_tokens if (end := backend.token_to_id(token)) is not None]
    return Tokenizer(
        backend,
        bos_token_id=None if bos is None else backend.token_to_id(bos),
        eos_token_id=None if eos is None else backend.token_to_id(eos),
        eos_token_ids=ends,
        chat_template=template,
    )


def _offered(directory: Path, config: Mapping[str, object], hooks: HookManager | None) -> TiktokenVocabulary | None:
    """What an installed package says of the directory's tokenizer class; None where `tokenizer.json` says it all."""
    name = _class_name(directory, config)
    if hooks is None or name not in hooks.names("tokenizers") or (directory / "tokenizer.json").is_file():
        return None
    found = hooks.get("tokenizers", name)
    if not isinstance(found, TiktokenVocabulary):
        raise BrokenPlugin(
            f"what is offered as tokenizers.{name} is no TiktokenVocabulary", field=name, value=type(found).__name__
        )
    return found if (directory / found.file).is_file() else None


def _load_backend(directory: Path, config: Mapping[str, object]) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer as Backend

    text = read_text(directory / "tokenizer.json", TOKENIZER_LIMIT)
    if text is not None:
        try:
            backend = Backend.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(f"tokenizer.json cannot be used: {error}", field="tokenizer.json") from error
        backend.encode_special_tokens = config.get("split_special_tokens") is True
        return backend
    if (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
        return _from_vocabulary(directory, config)
    for name in _SENTENCEPIECE_FILES:
        if (directory / name).is_file():
            return _from_sentencepiece(directory, name, config)
    raise ConfigError(
        f"{directory} holds no tokenizer",
        field="tokenizer.json",
        value=_class_name(directory, config) or None,
        fix="add the checkpoint's tokenizer.json, or start with skip_tokenizer_init and token ids as prompts",
    )


def _from_vocabulary(directory: Path, config: Mapping[str, object]) -> tokenizers.Tokenizer:
    """Byte-level BPE from `vocab.json` and `merges.txt`; how text is cut into words depends on the class."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    name = _class_name(directory, config)
    if name not in _VOCABULARY_CLASSES:
        raise ConfigError(
            f"vocab.json and merges.txt of a {name or 'tokenizer without a class'} cannot be read",
            field="tokenizer_config.json: tokenizer_class",
            limit="one of " + ", ".join(_VOCABULARY_CLASSES),
            fix="add the checkpoint's tokenizer.json",
        )
    vocabulary = read_json(directory / "vocab.json", TOKENIZER_LIMIT)
    lines = (read_text(directory / "merges.txt", TOKENIZER_LIMIT) or "").split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    try:
        backend = Backend(BPE(vocab=vocabulary, merges=pairs))  # type: ignore[arg-type]
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"vocab.json and merges.txt do not fit: {error}", field="merges.txt") from error
    if name == "Qwen2Tokenizer":
        backend.normalizer = normalizers.NFC()
        backend.pre_tokenizer = build_pre_tokenizer("qwen2")
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space") is True)
    backend.decoder = decoders.ByteLevel()
    bos = _content(config.get("bos_token"), "bos_token")
    if config.get("add_bos_token") is True and bos is not None and bos in vocabulary:
        index = backend.token_to_id(bos)
        backend.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, index)])
    return backend


def _from_sentencepiece(directory: Path, file: str, config: Mapping[str, object]) -> tokenizers.Tokenizer:
    """By transformers' converter, which needs two further packages. Only classes that transformers ships are used."""
    missing = [package for package in ("sentencepiece", "google.protobuf") if not _is_installed(package)]
    if missing:
        raise ConfigError(
            f"the tokenizer is a SentencePiece file, and {' and '.join(missing)} to convert it is not installed",
            field=file,
            fix="pip install sentencepiece protobuf, or add the checkpoint's tokenizer.json",
        )
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    name = _class_name(directory, config) or "LlamaTokenizer"
    converter = tokenizer_class_from_name(name)
    if converter is None:
        raise ConfigError(
            "unknown tokenizer class",
            field="tokenizer_config.json: tokenizer_class",
            value=name,
            fix="add tokenizer.json",
        )
    try:
        backend: tokenizers.Tokenizer = converter.from_pretrained(
            str(directory), local_files_only=True
        ).backend_tokenizer
    except Exception as error:  # whatever the converter meets in a file it did not write
        raise ConfigError(f"the SentencePiece file cannot be converted: {error}", field=file) from error
    return backend


def _is_installed(package: str) -> bool:
    top = package.partition(".")[0]
    return importlib.util.find_spec(top) is not None and importlib.util.find_spec(package) is not None


def _class_name(directory: Path, config: Mapping[str, object]) -> str:
    name = config.get("tokenizer_class") or _VOCABULARY_MODELS.get(
        str(read_json(directory / "config.json").get("model_type")), ""
    )
    return str(name).removesuffix("Fast")


def _special_tokens_map(directory: Path) -> dict[str, object]:
    return read_json(directory / "special_tokens_map.json")


def _add_missing_tokens(backend: tokenizers.Tokenizer, directory: Path, named: Mapping[str, object]) -> None:
    """Tokens that the side files add to `tokenizer.json`: declared ones in the order of their ids, then named ones."""
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    specials = dict.fromkeys(_named_tokens(named))
    for token in _declared_tokens(directory, named, specials):
        if known.get(token.content) != token:
            backend.add_special_tokens([token]) if token.special else backend.add_tokens([token])
            known[token.content] = token
    for content in specials:
        if content not in known:
            backend.add_special_tokens([content])


def _declared_tokens(
    directory: Path, named: Mapping[str, object], specials: Mapping[str, None]
) -> Iterator[tokenizers.AddedToken]:
    from tokenizers import AddedToken

    declared = named.get("added_tokens_decoder")
    if isinstance(declared, dict):
        for index, fields in sorted(declared.items(), key=lambda item: (len(item[0]), item[0])):
            yield _added_token(fields, f"added_tokens_decoder.{index}")
        return
    added: dict[str, int] = {}
    for content, index in read_json(directory / "added_tokens.json").items():
        if not isinstance(index, int):
            raise ConfigError("not a token id", field=f"added_tokens.json: {content[:64]}", value=index)
        added[content] = index
    for content in sorted(added, key=added.__getitem__):
        special = content in specials
        yield AddedToken(content, normalized=not special, special=special)


def _added_token(fields: object, field: str) -> tokenizers.AddedToken:
    from tokenizers import AddedToken

    content = fields.get("content") if isinstance(fields, dict) else None
    if not isinstance(fields, dict) or not isinstance(content, str):
        raise ConfigError("not an added token", field=f"tokenizer_config.json: {field}", value=fields)
    special = fields.get("special") is True
    options = {name: fields.get(name) is True for name in ("single_word", "lstrip", "rstrip")}
    return AddedToken(content, normalized=fields.get("normalized", not special) is True, special=special, **options)


def _named_tokens(named: Mapping[str, object]) -> Iterator[str]:
    for name in _NAMED:
        content = _content(named.get(name), name)
        if content is not None:
            yield content
    further = named.get("extra_special_tokens") or named.get("additional_special_tokens") or []
    for item in further.values() if isinstance(further, dict) else further if isinstance(further, list) else ():
        content = _content(item, "additional_special_tokens")
        if content is not None:
            yield content


def _content(value: object, name: str) -> str | None:
    """A token as configuration files write it: its text, or an object with its text in `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    if value is None or isinstance(value, str):
        return value
    raise ConfigError("not a token", field=f"tokenizer_config.json: {name}", value=value)


def _eos_token_ids(directory: Path) -> list[int]:
    """`eos_token_id` of `generation_config.json`, else of `config.json`: an integer or a list of them."""
    for name in ("generation_config.json", "config.json"):
        value = read_json(directory / name).get("eos_token_id")
        if value is None:
            continue
        items = value if isinstance(value, list) else [value]
        ids = [item for item in items if isinstance(item, int) and not isinstance(item, bool) and item >= 0]
        if len(ids) != len(items):
            raise ConfigError("not a token id or a list of them", field=f"{name}: eos_token_id", value=value)
        return ids
    return []


def _chat_template(directory: Path, config: Mapping[str, object]) -> str | None:
    """`chat_template.jinja`, else the configuration's template, of several the one called ``default``."""
    text = read_text(directory / "chat_template.jinja")
    if text is not None:
        return text
    template = config.get("chat_template") or read_json(directory / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    if template is None or isinstance(template, str):
        return template
    raise ConfigError("not a template", field="tokenizer_config.json: chat_template", value=template)
