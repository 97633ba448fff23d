"""Where packages written for vLLM register things: models and configuration classes, which are used; and parsers and
checks of the configuration, which are noted and not used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from bestiary.api import ModelRegistry as core_registry
from bestiary.api.registering import collected

C = TypeVar("C", bound=type)


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


class _Configs(dict[str, Any]):
    """What is not in it is asked of transformers, which has the classes that vLLM's table begins with."""

    def __missing__(self, model_type: str) -> Any:
        from transformers import CONFIG_MAPPING

        return CONFIG_MAPPING[model_type]

    def get(self, model_type: str, default: Any = None) -> Any:
        try:
            return self[model_type]
        except KeyError:
            return default


CONFIGS = _Configs()
"""vLLM's own table of configuration classes, by `model_type`; `give_configs` makes transformers know them."""


def give_configs() -> None:
    """What is in `CONFIGS` is what transformers makes of a `model_type` from now on."""
    from transformers import CONFIG_MAPPING

    for model_type, config_class in CONFIGS.items():
        if isinstance(config_class, type):
            CONFIG_MAPPING.register(model_type, config_class, exist_ok=True)


class VerifyAndUpdateConfig:
    """What a package derives its checks of the configuration from. Core's configuration is settled when it is made."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        return None

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        return None


MODELS_CONFIG_MAP: dict[str, type] = {}
"""Such checks by architecture; none is made."""


class _Parsers:
    """Notes what is registered: answers are parsed by Bestiary's own parsers (hooks `tool_call_parsers` …)."""

    lazy_parsers: ClassVar[dict[str, tuple[str, str]]]
    known: ClassVar[dict[str, type]]

    @classmethod
    def register_module(
        cls, name: str | list[str] | None = None, force: bool = True, module: type | None = None
    ) -> Callable[[C], C] | type:
        """A decorator, or, given a class, the class."""

        def register(parser: C) -> C:
            names = [name] if isinstance(name, str) else name or [parser.__name__]
            cls.known.update(dict.fromkeys(names, parser))
            return parser

        return register if module is None else register(module)

    @classmethod
    def register_lazy_module(cls, name: str, module_path: str, class_name: str) -> None:
        """The same, of a class that is not imported."""
        cls.lazy_parsers[name] = (module_path, class_name)

    @classmethod
    def list_registered(cls) -> list[str]:
        return sorted({*cls.known, *cls.lazy_parsers})


class ToolParserManager(_Parsers):
    """Parsers of tool calls."""

    lazy_parsers: ClassVar[dict[str, tuple[str, str]]] = {}
    known: ClassVar[dict[str, type]] = {}
    tool_parsers = known


class ReasoningParserManager(_Parsers):
    """Parsers of reasoning."""

    lazy_parsers: ClassVar[dict[str, tuple[str, str]]] = {}
    known: ClassVar[dict[str, type]] = {}
    reasoning_parsers = known


class ToolParser:
    """What parsers of tool calls derive from."""


class ReasoningParser:
    """What parsers of reasoning derive from."""


def noted() -> set[str]:
    """A line for everything that is registered and not used."""
    unused = "not used: Bestiary has its own"
    tools = {f"tool parser {name} ({unused})" for name in ToolParserManager.list_registered()}
    reasoning = {f"reasoning parser {name} ({unused})" for name in ReasoningParserManager.list_registered()}
    checks = {f"check of the configuration of {name} (not made)" for name in MODELS_CONFIG_MAP}
    return tools | reasoning | checks
