"""Adapters (LoRA) as users name them and as the engine tells of them. Names follow vLLM's `LoRARequest`."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import RequestError

MAX_NAME_CHARS = 256
MAX_PATH_CHARS = 4096


@dataclass(frozen=True, slots=True)
class LoRARequest:
    """The adapter that an answer is wanted from: ``LoRARequest("sql", lora_path="adapters/sql")``.

    Attributes:
        lora_name: what it is called from now on.
        lora_int_id: accepted for the sake of code written for vLLM, and not used: the name is enough.
        lora_path: a directory with `adapter_config.json` and safetensors; None: an adapter of that name was added.
    """

    lora_name: str
    lora_int_id: int | None = None
    lora_path: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.lora_int_id, str):
            raise _bad("lora_int_id", self.lora_int_id, "a number; a path is given as lora_path=…")
        if not _is_text(self.lora_name, MAX_NAME_CHARS):
            raise _bad("lora_name", self.lora_name, f"1 to {MAX_NAME_CHARS} printable characters")
        if self.lora_path is not None and not _is_text(self.lora_path, MAX_PATH_CHARS):
            raise _bad("lora_path", self.lora_path, f"a path of at most {MAX_PATH_CHARS} printable characters")

    @classmethod
    def of(cls, given: LoRARequest | str) -> LoRARequest:
        """The request itself, or one for the name of an adapter that was added."""
        if isinstance(given, LoRARequest):
            return given
        if isinstance(given, str):
            return cls(given)
        raise _bad("lora_request", given, "a LoRARequest, or the name of an adapter that was added")


@dataclass(frozen=True, slots=True)
class LoRAInfo:
    """An adapter that the engine knows.

    Attributes:
        digest: SHA-256 of its files. rank: the largest of its factors'.
        target_modules: the last parts of the names of the modules it changes, in order.
        num_bytes: what its factors take in memory beside the slots, on this rank.
        slot: the slot it is in; None where it would be loaded when a request wants it.
        pinned: added by name, and kept until it is removed; others give way when room is needed.
        requests: those that have not ended.
    """

    name: str
    path: str
    digest: str
    rank: int
    target_modules: tuple[str, ...]
    num_bytes: int
    slot: int | None = None
    pinned: bool = False
    requests: int = 0

    @property
    def lora_id(self) -> str:
        """Its name and content: another adapter of the same name has another."""
        return f"{self.name}@{self.digest}"


def _is_text(value: object, most: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most and value.isprintable()


def _bad(field: str, value: object, rule: str) -> RequestError:
    return RequestError(f"this {field} is refused", code="BAD_LORA_REQUEST", field=field, value=value, limit=rule)
