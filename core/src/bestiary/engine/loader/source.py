"""`resolve_source`: from what the user typed to files on this machine.

MODEL is, in this order: a path that exists (a directory or a `.gguf` file), a short name that an installed package
provides, or a hub id (`owner/name`, `owner/name:file.gguf`). Anything else is an error with the nearest names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from bestiary.api.errors import LoadError, UsageError

from . import hub
from .config_check import nearest
from .weight_files import find_weights, is_plain_name, numbered_set

MAX_NAME_CHARS = 4096
_LISTED = 1000


class Locator(Protocol):
    """What gives models short names: an installed package's model-source hook."""

    def locate(self, name: str) -> Path | None:
        """Where the model called `name` is; None when the name is not this locator's."""
        ...

    def names(self) -> Mapping[str, str]:
        """Names to offer → one line about each."""
        ...


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model is, all of it on this machine.

    Attributes:
        kind: "directory" (safetensors, or nothing yet) or "gguf".
        root: the directory that holds it.
        weight_files: in order; empty where the directory holds none that may be read.
        config_path: its `config.json`; None where a GGUF file's metadata must do.
        name: for people: what was typed. revision: the hub's commit or what was asked for.
    """

    kind: Literal["directory", "gguf"]
    root: Path
    weight_files: tuple[Path, ...]
    config_path: Path | None
    name: str
    revision: str | None = None


def resolve_source(
    model: str,
    *,
    revision: str | None = None,
    locators: Sequence[Locator] = (),
    download_dir: str | Path | None = None,
    hf_config_path: str | None = None,
    weights: bool = True,
) -> ModelSource:
    """The model's files, fetched from the hub if need be.

    Args:
        revision: of a hub id; an error with anything else.
        locators: who gives models short names, asked in this order.
        download_dir: the hub's cache; None is huggingface_hub's own.
        hf_config_path: a `config.json`, a directory or a hub id that holds one, used in place of the model's own.
        weights: False leaves weights on the hub (dummy weights, inspection).

    Raises:
        UsageError: not a name at all, or options that do not go together. LoadError: nothing is there.
    """
    _check_name(model, "model")
    cache = None if download_dir is None else Path(download_dir)
    path = Path(model).expanduser()
    located = path if path.exists() else next(filter(None, (locator.locate(model) for locator in locators)), None)
    if located is not None:
        source = _from_path(located, model)
    else:
        source = _from_hub(model, locators, revision, cache, weights)
        revision = None
    if revision is not None:
        raise UsageError(
            "revision needs a hub id", field="revision", limit=f"not with {source.kind}s here", value=revision
        )
    if hf_config_path is not None:
        source = _with_config(source, hf_config_path, cache)
    return source


def _check_name(name: object, field: str) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS or not name.isprintable():
        rule = f"1 to {MAX_NAME_CHARS} printable characters"
        raise UsageError(f"{field} is no name", field=field, limit=rule, value="" if name is None else name)


def _from_path(path: Path, name: str, *, revision: str | None = None) -> ModelSource:
    if path.is_dir():
        files = find_weights(path)
        root = path
    elif path.suffix == ".gguf":
        files, root = numbered_set(path), path.parent
    elif path.name == "config.json":
        return _from_path(path.parent, name)
    else:
        rule = "a directory or a .gguf file"
        raise LoadError(f"{path.name} is no model", code="NOT_A_MODEL", field=str(path), limit=rule, value=path.suffix)
    kind: Literal["directory", "gguf"] = "gguf" if files and files[0].suffix == ".gguf" else "directory"
    config = root / "config.json"
    found = config if config.exists() or config.is_symlink() else None
    return ModelSource(kind=kind, root=root, weight_files=files, config_path=found, name=name, revision=revision)


def _from_hub(
    model: str, locators: Sequence[Locator], revision: str | None, cache: Path | None, weights: bool
) -> ModelSource:
    repo, _, file = model.partition(":")
    if (
        not hub.REPO_ID.fullmatch(repo)
        or model.startswith((".", "~", "/"))
        or (model.endswith((".gguf", "/")) and not file)
    ):
        raise _not_found(model, locators)
    if file and not (file.endswith(".gguf") and all(is_plain_name(part) for part in file.split("/"))):
        rule = "owner/name:file.gguf"
        raise UsageError("only a GGUF file can be named in a repository", field="model", limit=rule, value=model)
    folder = hub.fetch(repo, file=file or None, revision=revision, download_dir=cache, weights=weights)
    if not file:
        return _from_path(folder, model, revision=revision)
    config = folder / "config.json"
    return ModelSource(
        kind="gguf",
        root=folder,
        weight_files=numbered_set(folder / file) if weights else (),
        config_path=config if config.exists() else None,
        name=model,
        revision=revision,
    )


def _with_config(source: ModelSource, hf_config_path: str, cache: Path | None) -> ModelSource:
    _check_name(hf_config_path, "hf_config_path")
    path = Path(hf_config_path).expanduser()
    if not path.exists() and hub.REPO_ID.fullmatch(hf_config_path):
        path = hub.fetch(hf_config_path, file=None, revision=None, download_dir=cache, weights=False)
    config = path / "config.json" if path.is_dir() else path
    if not config.exists():
        rule = "a config.json, or a directory or hub id that holds one"
        raise LoadError(
            "no config.json there", code="CONFIG_NOT_FOUND", field="hf_config_path", limit=rule, value=hf_config_path
        )
    return replace(source, config_path=config)


def _not_found(model: str, locators: Sequence[Locator]) -> LoadError:
    names = {name for locator in locators for name in locator.names()}
    path = Path(model).expanduser()
    beside = [str(path.with_name(name)) for name in nearest(path.name, _listing(path.parent))] if path.name else []
    close = nearest(model, names) + beside
    known = ", ".join(sorted(names)) or "none installed"
    return LoadError(
        f"there is no model {model[:200]!r}" + (f"; did you mean {' or '.join(close)}?" if close else ""),
        code="MODEL_NOT_FOUND",
        field="model",
        limit="a directory, a .gguf file, a hub id (owner/name, owner/name:file.gguf) or a short name",
        value=model,
        details=[f"short names: {known}"],
        fix="check the spelling; `bestiary models` lists what is installed",
    )


def _listing(directory: Path) -> list[str]:
    """Names in the directory, the first 1,000: enough for a hint."""
    if not directory.is_dir():
        return []
    return [entry.name for _, entry in zip(range(_LISTED), directory.iterdir(), strict=False)]
