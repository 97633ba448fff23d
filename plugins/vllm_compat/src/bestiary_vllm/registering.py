"""Functions in the group ``vllm.general_plugins``: what they register beside architectures, which core sees itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .shims import registries


@contextmanager
def watching() -> Iterator[list[str]]:
    """Around a call of one: a line for each configuration class and parser that it registers."""
    also: list[str] = []
    configs, parsers = _config_types(), set(registries.parsers)
    yield also
    also += [f"configuration {name}" for name in sorted(_config_types() - configs)]
    also += sorted(set(registries.parsers) - parsers)


def _config_types() -> set[str]:
    """Model types whose configuration class somebody gave to transformers, or to vLLM's own table of them."""
    auto = sys.modules.get("transformers.models.auto.configuration_auto")
    extra = {} if auto is None else getattr(auto.CONFIG_MAPPING, "_extra_content", {})
    return {str(name) for name in (*extra, *registries.CONFIGS)}
