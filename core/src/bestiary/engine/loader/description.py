"""What a model is, before any of it is loaded: its files, its configuration, and who implements it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bestiary.api.entries import Resolution
from bestiary.api.gguf import GgufArchitecture
from bestiary.api.hook_manager import HookManager
from bestiary.api.protocols import PoolingTypeStr
from bestiary.api.registry import ModelRegistry, Registry
from bestiary.engine.arguments import EngineArgs

from .alias import AppliedAlias
from .config_check import architectures, check_config
from .config_json import read_json
from .config_load import load_config
from .gguf_config import gguf_config
from .gguf_names import checkpoint_names
from .gguf_plugins import gguf_declaration
from .gguf_reader import GgufFile
from .hf_config import make_hf_config
from .pooling import stated_pooling
from .source import ModelSource, resolve_source


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """Everything known of a model from its small files.

    Attributes:
        data: `config.json`, checked, with `hf_overrides` applied. architectures: the names in it.
        notices: what the user should be told about it.
        metadata: of a GGUF file; None otherwise. gguf: how its architecture is laid out.
        alias: where the architecture, once resolved, is another one under other names; `data` then bear the class's.
    """

    source: ModelSource
    data: Mapping[str, Any]
    architectures: tuple[str, ...]
    notices: tuple[str, ...] = ()
    metadata: Mapping[str, object] | None = None
    gguf: GgufArchitecture | None = None
    alias: AppliedAlias | None = None

    def resolved(self, found: Resolution, hooks: HookManager) -> ModelDescription:
        """The description in the terms of the class that was found for it.

        Raises:
            ConfigError: the configuration is not what the alias says it is.
        """
        alias = AppliedAlias.of(found)
        if alias is None:
            return self
        methods = hooks.names("quantization_methods")
        checked = alias.config(
            self.data,
            lambda data: check_config(data, quantization_methods=methods),
            renamed=self.gguf is not None and self.source.config_path is None,
        )
        notices = (*self.notices, *(text for text in checked.notices if text not in self.notices))
        return replace(self, data=checked.data, notices=notices, alias=alias)

    def hf_config(self, hooks: HookManager) -> tuple[Any, tuple[str, ...]]:
        """The configuration object of model classes, and notices about fields that look misspelt.

        Imports the part of transformers that defines the class.
        """
        model_type = self.data.get("model_type")
        parser = hooks.get("config_parsers", model_type) if model_type in hooks.names("config_parsers") else None
        config, misspelt = make_hf_config(self.data, parser=parser, source=self._config_name)
        if self.alias is not None and parser is None:
            self.alias.refuse_misspelt(config)
        return config, misspelt

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """What ends an answer, by `generation_config.json`, `config.json` and GGUF metadata together."""
        found = _ids(self.data.get("eos_token_id"))
        if self.source.kind == "directory" and (path := self.source.root / "generation_config.json").exists():
            found |= _ids(read_json(path).get("eos_token_id"))
        for name in ("eos_token_id", "eot_token_id", "eom_token_id"):
            found |= _ids((self.metadata or {}).get(f"tokenizer.ggml.{name}"))
        return frozenset(found)

    @property
    def pooling_type(self) -> PoolingTypeStr | None:
        """How its hidden states are pooled, where its files say so."""
        return stated_pooling(self.source.root, self.metadata)

    def quantization_config(self, method: str) -> Mapping[str, Any]:
        """What a plain checkpoint says to a quantization method: nothing, but to "gguf" the types in a GGUF file."""
        if method != "gguf":
            return {}
        return {"tensors": {}} if self.gguf is None else {"tensors": _types(self.source, self.gguf)}

    @property
    def _config_name(self) -> str:
        return str(Path(self.source.name).name) if self.source.config_path is None else "config.json"


def describe(args: EngineArgs, hooks: HookManager, registry: Registry = ModelRegistry) -> ModelDescription:
    """Find the model and read its configuration. Imports no model code.

    Raises:
        LoadError: it is not there. ConfigError: it is not usable. UnknownArchitecture: nothing installed knows it.
    """
    source = resolve_source(
        args.model,
        revision=args.revision,
        download_dir=args.download_dir,
        locators=[make() for make in hooks.all("model_sources").values()],
        hf_config_path=args.hf_config_path,
        weights=args.load_format != "dummy",
    )
    metadata: Mapping[str, object] | None = None
    declaration: GgufArchitecture | None = None
    data: dict[str, Any] = {}
    if source.kind == "gguf":
        with GgufFile.open(source.weight_files[0]) as file:
            metadata = file.metadata
            declaration = gguf_declaration(registry, file.architecture, metadata)
            if source.config_path is None:
                data = gguf_config(file, declaration)
    checked = load_config(
        source,
        hf_overrides=args.hf_overrides,
        read_metadata=lambda _: data,
        quantization_methods=hooks.names("quantization_methods"),
    )
    return ModelDescription(
        source=source,
        data=checked.data,
        architectures=architectures(checked.data),
        notices=checked.notices,
        metadata=metadata,
        gguf=declaration,
    )


def _types(source: ModelSource, declaration: GgufArchitecture) -> dict[str, str]:
    """The checkpoint's name of each matrix in a GGUF file → its type."""
    with GgufFile.open(source.weight_files[0]) as file:
        names = checkpoint_names(file, declaration)
        tensors = {name: file.tensors[stored] for stored, name in names.items()}
    return {name: tensor.type.name for name, tensor in tensors.items() if len(tensor.shape) > 1}


def _ids(value: object) -> set[int]:
    values = value if isinstance(value, list | tuple) else [value]
    return {each for each in values if isinstance(each, int) and not isinstance(each, bool)}
