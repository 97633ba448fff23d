"""How a model's own files say that its hidden states are pooled.

Sentence Transformers write `1_Pooling/config.json` beside a model, with one boolean a mode; llama.cpp's converter
writes ``<architecture>.pooling_type`` (an enumeration) into a GGUF file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from bestiary.api.errors import ConfigError
from bestiary.api.protocols import PoolingTypeStr

from .config_json import read_json

FILE = "1_Pooling/config.json"
_PREFIX = "pooling_mode_"
_MODES: Mapping[str, PoolingTypeStr] = {"lasttoken": "LAST", "mean_tokens": "MEAN", "cls_token": "CLS"}
_GGUF: Mapping[object, PoolingTypeStr] = {1: "MEAN", 2: "CLS", 3: "LAST"}
_GGUF_NONE = 0


def stated_pooling(root: Path, metadata: Mapping[str, object] | None = None) -> PoolingTypeStr | None:
    """What the files in `root`, or a GGUF file's `metadata`, say; None where they say nothing.

    Raises:
        ConfigError: a pooling that is not one of ours, or several together.
    """
    if metadata is not None:
        name = f"{metadata.get('general.architecture')}.pooling_type"
        value = metadata.get(name, _GGUF_NONE)
        if value != _GGUF_NONE and value not in _GGUF:
            raise _unknown(name, value)
        return _GGUF.get(value)
    if not (root / FILE).exists():
        return None
    chosen = [name.removeprefix(_PREFIX) for name, value in read_json(root / FILE).items()
              if name.startswith(_PREFIX) and value is True]  # fmt: skip
    if len(chosen) != 1 or chosen[0] not in _MODES:
        raise _unknown(FILE, ", ".join(chosen) or "none")
    return _MODES[chosen[0]]


def _unknown(field: str, value: object) -> ConfigError:
    return ConfigError(
        "this model says that it pools in a way that is not known here", code="UNSUPPORTED_LAYER", field=field,
        value=value, limit=" or ".join(_MODES), fix="pooling_type='MEAN' (--pooling-type) or another takes its place",
    )  # fmt: skip
