"""An alias at work: another architecture's `config.json` and tensors under the names that the class knows.

A GGUF file speaks the class's names already, by way of its `GgufArchitecture`: fields and tensors stay as they are
there, and of the alias only `model_type`, `constants` and `defaults` apply.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bestiary.api.alias import Alias
from bestiary.api.entries import Resolution
from bestiary.api.errors import BrokenPlugin, ConfigError, shorten

from .config_check import CheckedConfig, nearest
from .hf_config import AttributeConfig, known_fields

if TYPE_CHECKING:
    from bestiary.nn.weights import WeightsMapper

_ABSENT = object()


@dataclass(frozen=True, kw_only=True)
class AppliedAlias:
    """An alias, and the words for it in errors: ``"GarnetForCausalLM (from dist garnet 1.0)"``."""

    alias: Alias
    who: str

    @classmethod
    def of(cls, found: Resolution) -> AppliedAlias | None:
        if found.alias is None:
            return None
        return cls(alias=found.alias, who=f"{found.architecture} (from {found.entry.origin})")

    def config(
        self, data: Mapping[str, Any], check: Callable[[Mapping[str, Any]], CheckedConfig], *, renamed: bool
    ) -> CheckedConfig:
        """The class's own configuration out of the checkpoint's, checked again under its new names.

        Args:
            renamed: whether `data` bears the class's names already.

        Raises:
            ConfigError: fields are missing, stated twice, or wrong; the checkpoint's own names are in `details`.
        """
        fields = {} if renamed else self.alias.config
        moved = {source for source in fields.values() if "." not in source}
        result = {name: value for name, value in data.items() if name not in moved}
        problems = []
        for name, source in fields.items():
            value = _look_up(data, source)
            stated = result.get(name, _ABSENT)
            if value is not _ABSENT and stated not in (_ABSENT, value):
                problems.append(f"{source} = {shorten(value)} and {name} = {shorten(stated)}: one of the two")
            elif value is not _ABSENT:
                result[name] = value
            elif stated is _ABSENT and name not in self.alias.defaults:
                near = nearest(source, data, count=1)
                problems.append(f"{source} is missing (for {name})" + (f"; it has {near[0]}" if near else ""))
        if problems:
            raise ConfigError(
                f"config.json does not have the fields that {self.who} reads: {len(problems)} problem(s)",
                code="ALIAS_MISMATCH",
                field=next(iter(problems)).split(" ")[0],
                details=problems,
                fix="check that the model is of this architecture; the alias's author: defaults= for optional fields",
            )
        for name, value in self.alias.defaults.items():
            if value is not None:
                result.setdefault(name, value)
        result |= self.alias.constants
        if self.alias.model_type is not None:
            result["model_type"] = self.alias.model_type
        return self._checked(result, check, fields)

    def _checked(
        self, data: Mapping[str, Any], check: Callable[[Mapping[str, Any]], CheckedConfig], fields: Mapping[str, str]
    ) -> CheckedConfig:
        try:
            return check(data)
        except ConfigError as error:
            text = f"{error.field} {error.message} {' '.join(error.details)}"
            own = [
                f"{name} is {source} of config.json, says {self.who}" for name, source in fields.items() if name in text
            ]
            raise ConfigError(
                error.message, code=error.error_code, field=error.field, limit=error.limit, value=error.value,
                details=[*error.details, *own], fix=error.fix,
            ) from error  # fmt: skip

    def refuse_misspelt(self, hf_config: Any) -> None:
        """A field that the configuration class does not read, and whose name is nearly one that it does.

        Raises:
            BrokenPlugin: BAD_ALIAS.
        """
        if isinstance(hf_config, AttributeConfig):
            return
        known = known_fields(type(hf_config))
        named = {*self.alias.config, *self.alias.constants, *self.alias.defaults}
        free = known - named
        problems = [
            f"{name}: {type(hf_config).__name__} reads {near[0]}"
            for name in sorted(named - known)
            if (near := nearest(name, free, count=1, cutoff=0.85))
        ]
        if problems:
            raise BrokenPlugin(
                f"{self.who} sets fields that nobody reads", code="BAD_ALIAS", field="config", details=problems,
                fix="its author: correct the names",
            )  # fmt: skip

    def mapper(self) -> WeightsMapper:
        """The renames of tensors, as the loader takes them."""
        tables = self.alias.weights
        from bestiary.nn.weights import WeightsMapper  # brings in torch, which reading a description does not need

        return WeightsMapper(
            orig_to_new_regex=dict[str | re.Pattern[str], str | None](tables.get("regex", {}).items()),
            orig_to_new_substr=tables.get("substr", {}),
            orig_to_new_prefix=tables.get("prefix", {}),
            orig_to_new_suffix=tables.get("suffix", {}),
        )


def _look_up(data: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path; None stands for a field that is there and says nothing."""
    value: Any = data
    for name in path.split("."):
        if not isinstance(value, Mapping) or name not in value:
            return _ABSENT
        value = value[name]
    return value
