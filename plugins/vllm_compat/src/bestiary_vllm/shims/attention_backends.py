"""vLLM's attention backends, by name: files ask which of them can run, and pass one on. Core chooses its own."""

from __future__ import annotations

from typing import Any


class ForeignBackend:
    """One of them. None can run here, and what it is told is forgotten; an attention layer that is given it takes no
    notice."""

    name = "FOREIGN"

    @classmethod
    def get_name(cls) -> str:
        return cls.name

    @classmethod
    def get_class(cls) -> type[ForeignBackend]:
        return cls

    @classmethod
    def is_supported_on_current_device(cls, **facts: Any) -> bool:
        return False

    @classmethod
    def set_head_size_v(cls, head_size_v: int) -> None:
        """The layer is told by itself how wide values are."""


class _ByName(type):
    def __getattr__(cls, name: str) -> type[ForeignBackend]:
        if not name.isupper():
            raise AttributeError(name)
        made = type(name, (ForeignBackend,), {"name": name})
        setattr(cls, name, made)
        return made


class AttentionBackendEnum(metaclass=_ByName):
    """Every name in capitals is one."""
