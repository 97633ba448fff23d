"""Models on the Hugging Face hub: the few files that are needed, through huggingface_hub's cache.

Never downloaded: `*.bin` and other pickles, `*.py`, anything in a subfolder that was not named.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from bestiary.api.errors import LoadError

from .pooling import FILE as POOLING
from .weight_files import INDEX, PICKLES, SINGLE, read_weight_map

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    INDEX,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "*.tiktoken",
    "preprocessor_config.json",
    "processor_config.json",
    POOLING,
)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_TIMEOUT = 10.0


def is_offline() -> bool:
    """Whether the environment forbids the network, by huggingface_hub's own variable."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def fetch(
    repo: str, *, file: str | None, revision: str | None, download_dir: Path | None, weights: bool = True
) -> Path:
    """The local folder that holds the repository's configuration, tokenizer and weights; cached files stay.

    Args:
        file: a GGUF file in the repository; with it no safetensors are fetched.
        revision: a branch, tag or commit; None is the default branch.
        weights: False fetches the small files only.

    Raises:
        LoadError: NOT_CACHED, NO_NETWORK, MODEL_NOT_FOUND, REVISION_NOT_FOUND, GATED, FILE_NOT_FOUND or HUB_FAILED.
    """
    folder = _snapshot(repo, SMALL_FILES, revision, download_dir)
    if not weights:
        return folder
    if _COMMIT.fullmatch(folder.name):
        revision = folder.name
    if file is not None:
        _snapshot(repo, _gguf_patterns(file), revision, download_dir)
        if not (folder / file).exists():
            raise _missing_file(repo, file, revision)
        return folder
    for patterns in _weight_patterns(folder):
        _snapshot(repo, patterns, revision, download_dir)
        if any(folder.glob("*.safetensors")):
            return folder
    raise _missing_file(repo, "*.safetensors", revision)


def _weight_patterns(folder: Path) -> list[Sequence[str]]:
    """What to ask for, in order, until something comes."""
    if (folder / INDEX).exists():
        return [sorted(set(read_weight_map(folder / INDEX).values()))]
    return [(SINGLE,), ("*.safetensors",)]


def _gguf_patterns(file: str) -> tuple[str, ...]:
    """The file, and the other parts if it is one of a split set."""
    return (re.sub(r"-\d{5}-of-(\d{5}\.gguf)$", r"-?????-of-\1", _literal(file)),)


def _literal(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _snapshot(repo: str, patterns: Sequence[str], revision: str | None, download_dir: Path | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            cache_dir=download_dir,
            allow_patterns=list(patterns),
            ignore_patterns=kept_at_the_top(patterns),
            local_files_only=is_offline(),
            etag_timeout=_TIMEOUT,
        )
    except Exception as cause:
        raise _hub_error(repo, revision, cause) from cause
    return Path(folder)


def kept_at_the_top(patterns: Sequence[str]) -> list[str]:
    """What to ignore, since a star stands for a folder as well."""
    return [f"*/{each}" for each in patterns if "*" in each and "/" not in each]


def _hub_error(repo: str, revision: str | None, cause: Exception) -> LoadError:
    from huggingface_hub import errors

    where = repo if revision is None else f"{repo} at {revision}"
    if isinstance(cause, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        if is_offline():
            message, code = f"{where} is not in the local cache, and HF_HUB_OFFLINE forbids the network", "NOT_CACHED"
            fix = f"unset HF_HUB_OFFLINE, or run `hf download {repo}` where there is a network, or name a directory"
        else:
            message, code = f"{where} is not in the local cache, and the hub cannot be reached", "NO_NETWORK"
            fix = "check the network and its proxy, or name a directory or a file that is here"
    elif isinstance(cause, errors.GatedRepoError):
        message, code = f"{where} is gated: its owner wants its terms accepted first", "GATED"
        fix = "accept the terms on the model's page, then log in with `hf auth login`"
    elif isinstance(cause, errors.RevisionNotFoundError):
        message, code, fix = (
            f"{repo} has no revision {revision}",
            "REVISION_NOT_FOUND",
            "name a branch, a tag or a commit",
        )
    elif isinstance(cause, errors.RepositoryNotFoundError):
        message, code = f"the hub has no model {repo}, or it is private", "MODEL_NOT_FOUND"
        fix = "check the spelling; for a private model log in with `hf auth login`"
    else:
        message, code = f"the hub failed for {where}: {type(cause).__name__}: {str(cause)[:200]}", "HUB_FAILED"
        fix = "try again, or name a directory or a file that is here"
    return LoadError(message, code=code, field="model", limit="a model that can be fetched", value=where, fix=fix)


def _missing_file(repo: str, wanted: str, revision: str | None) -> LoadError:
    """What the repository holds instead, where the hub can be asked."""
    if is_offline():
        return LoadError(
            f"{repo}: {wanted} is not in the local cache, and HF_HUB_OFFLINE forbids the network",
            code="NOT_CACHED",
            field="model",
            limit=wanted,
            value=repo,
            fix=f"unset HF_HUB_OFFLINE, or run `hf download {repo}` where there is a network",
        )
    listed = _remote_weights(repo, revision)
    gguf = next((name for name in listed if name.endswith(".gguf")), None)
    return LoadError(
        f"{repo} holds no {wanted}",
        code="FILE_NOT_FOUND",
        field="model",
        limit=wanted,
        value=repo,
        details=listed,
        fix=f"name one file: {repo}:{gguf}" if gguf else "take a repository that offers safetensors or GGUF",
    )


def _remote_weights(repo: str, revision: str | None) -> list[str]:
    from huggingface_hub import HfApi

    try:
        files = HfApi().list_repo_files(repo, revision=revision)
    except Exception as cause:
        raise _hub_error(repo, revision, cause) from cause
    return [name for name in files if name.endswith((".safetensors", ".gguf", *PICKLES))]
