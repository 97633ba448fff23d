"""Configuration classes that vLLM brings along: transformers' own of that name, or one that takes any field.

Model files name them in annotations; the object they are given is made by core from the model's `config.json`.
"""

from __future__ import annotations

import importlib
from typing import Any

_made: dict[str, type] = {}


def __getattr__(name: str) -> Any:
    if not name.endswith("Config"):
        raise AttributeError(f"there is no configuration class {name!r}", name=name)
    transformers = importlib.import_module("transformers")
    own = getattr(transformers, name, None)
    if own is None:
        own = _made.setdefault(name, type(name, (transformers.PreTrainedConfig,), {"__module__": __name__}))
    return own
