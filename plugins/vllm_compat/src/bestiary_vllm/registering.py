"""Functions in the group ``vllm.general_plugins``: what they register beside architectures, which core sees itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .shims import registries


@contextmanager
def watching() -> Iterator[list[str]]:
    """Around a call of one: a line for each configuration class that it registers, and for what is not used."""
    also: list[str] = []
    configs, noted = _config_types(), registries.noted()
    yield also
    if registries.CONFIGS:
        registries.give_configs()
    also += [f"configuration {name}" for name in sorted(_config_types() - configs)]
    also += sorted(registries.noted() - noted)


def _config_types() -> set[str]:
    """Model types whose configuration class somebody gave to transformers."""
    auto = sys.modules.get("transformers.models.auto.configuration_auto")
    return set() if auto is None else set(getattr(auto.CONFIG_MAPPING, "_extra_content", {}))
