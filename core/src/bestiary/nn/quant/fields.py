"""Reading a checkpoint's `quantization_config`: every field checked, and none that changes the numbers passed over."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from bestiary.api.errors import ConfigError

logger = logging.getLogger("bestiary")
Choice = TypeVar("Choice", str, int)
_MOST_NAMES = 100_000
_LONGEST_NAME = 512


class Fields:
    """The fields of one object, taken one by one. Null counts as absent.

    Args:
        where: the object's place in `config.json`, for errors.
    """

    def __init__(self, config: Mapping[str, Any], where: str = "quantization_config") -> None:
        self._left = {name: value for name, value in config.items() if value is not None}
        self.where = where

    @property
    def left(self) -> list[str]:
        """Names of the fields that nobody has taken yet."""
        return list(self._left)

    def take(self, name: str) -> Any:
        """The value as it stands, unchecked; None where absent."""
        return self._left.pop(name, None)

    def refused(self, name: str, rule: str, value: object) -> ConfigError:
        field = f"{self.where}.{name}"
        return ConfigError(f"{field} is refused", code="BAD_QUANTIZATION", field=field, limit=rule, value=value)

    def choice(self, name: str, allowed: Sequence[Choice], default: Choice | None = None) -> Choice:
        """One of `allowed`; required where there is no default."""
        value = self.take(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or value not in allowed:
            shown = "absent" if value is None else value
            raise self.refused(name, f"one of {', '.join(str(each) for each in allowed)}", shown)
        found: Choice = value
        return found

    def flag(self, name: str, default: bool) -> bool:
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self.refused(name, "true or false", value)
        return default if value is None else value

    def group_size(self, name: str = "group_size", default: int | None = None) -> int | None:
        """A number of inputs; None, which is written −1, for a whole row. Required where there is no default."""
        value = self.take(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not (value == -1 or 1 <= value <= 2**16):
            raise self.refused(name, "-1 (a whole row) or an integer from 1 to 65536", value)
        return None if value == -1 else value

    def counts(self, name: str, length: int) -> tuple[int, ...] | None:
        """So many positive integers, or nothing."""
        value = self.take(name)
        if value is None:
            return None
        right = isinstance(value, list | tuple) and len(value) == length
        if not right or not all(isinstance(each, int) and not isinstance(each, bool) and each > 0 for each in value):
            raise self.refused(name, f"a list of {length} positive integers", value)
        return tuple(value)

    def names(self, name: str) -> tuple[str, ...]:
        """A list of layers' names; empty where absent."""
        value = self.take(name)
        if value is None:
            return ()
        right = isinstance(value, list | tuple) and len(value) <= _MOST_NAMES
        if not right or not all(isinstance(each, str) and 0 < len(each) <= _LONGEST_NAME for each in value):
            raise self.refused(name, f"at most {_MOST_NAMES} names of at most {_LONGEST_NAME} characters", value)
        return tuple(value)

    def nested_names(self, name: str) -> tuple[str, ...]:
        """A list of lists of names, as one; empty where absent."""
        value = self.take(name)
        if value is None:
            return ()
        if not isinstance(value, list | tuple):
            raise self.refused(name, "a list of lists of names", value)
        inner = Fields({str(index): each for index, each in enumerate(value[:_MOST_NAMES])}, f"{self.where}.{name}")
        return tuple(each for index in inner.left for each in inner.names(index))

    def parts(self, name: str) -> Fields | None:
        """An object inside this one."""
        value = self.take(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.refused(name, "an object", value)
        return Fields(value, f"{self.where}.{name}")

    def absent(self, name: str, why: str) -> None:
        """Refuse a field that would change the numbers in a way nobody implements; empty and false ask for nothing."""
        value = self.take(name)
        if value:
            raise self.refused(name, f"absent: {why}", value)

    def done(self, *harmless: str) -> None:
        """All were asked for but `harmless` ones and those that say how the checkpoint was made; others are told of."""
        left = sorted(set(self.left) - {*harmless, "quant_method"})
        if left:
            logger.warning("%s: fields that are not read: %s", self.where, ", ".join(left)[:500])
