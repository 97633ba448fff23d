"""Where packages written for vLLM register things: models and configuration classes, which are used, and parsers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, TypeVar

from bestiary.api import ModelRegistry as core_registry
from bestiary.api.registering import collected

C = TypeVar("C", bound=type)

parsers: list[str] = []
"""A line for every parser that was registered."""


class _ModelRegistry:
    """Core's registry under the names that packages ask vLLM's by."""

    def register_model(self, model_arch: str, model_cls: type | str) -> None:
        """Core's `register_model`."""
        core_registry.register_model(model_arch, model_cls)

    def get_supported_archs(self) -> list[str]:
        """All architectures; within a registering function, those that it has registered: what else is installed must
        not decide what a package brings."""
        found = collected()
        return list(found) if found is not None else core_registry.architectures()

    @property
    def models(self) -> dict[str, Any]:
        """The names of `get_supported_archs`, each with itself: vLLM's records of them are not there."""
        return {name: name for name in self.get_supported_archs()}


ModelRegistry = _ModelRegistry()


class _Configs(MutableMapping[str, Any]):
    """vLLM's own table of configuration classes: what is put there is what transformers makes of a `model_type`."""

    def __init__(self) -> None:
        self._given: dict[str, Any] = {}

    def __setitem__(self, model_type: str, config_class: Any) -> None:
        from transformers import AutoConfig

        AutoConfig.register(model_type, config_class, exist_ok=True)
        self._given[model_type] = config_class

    def __getitem__(self, model_type: str) -> Any:
        return self._given[model_type]

    def __delitem__(self, model_type: str) -> None:
        del self._given[model_type]

    def __iter__(self) -> Iterator[str]:
        return iter(self._given)

    def __len__(self) -> int:
        return len(self._given)


CONFIGS = _Configs()


class _Parsers:
    """Notes what is registered: answers are parsed by Bestiary's own parsers (hooks `tool_call_parsers` …)."""

    kind = "parser"

    @classmethod
    def register_module(
        cls, name: str | list[str] | None = None, force: bool = True, module: type | None = None
    ) -> Callable[[C], C] | type:
        """A decorator, or, given a class, the class."""

        def register(parser: C) -> C:
            names = [name] if isinstance(name, str) else name or [parser.__name__]
            parsers.extend(f"{cls.kind} {each} (not used: Bestiary has its own)" for each in names)
            return parser

        return register if module is None else register(module)

    @classmethod
    def register_lazy_module(cls, name: str, module_path: str, class_name: str) -> None:
        """The same, of a class that is not imported."""
        parsers.append(f"{cls.kind} {name} (not used: Bestiary has its own)")


class ToolParserManager(_Parsers):
    """Parsers of tool calls."""

    kind = "tool parser"


class ReasoningParserManager(_Parsers):
    """Parsers of reasoning."""

    kind = "reasoning parser"


class ToolParser:
    """What parsers of tool calls derive from."""


class ReasoningParser:
    """What parsers of reasoning derive from."""
