"""Chat templates in a process of their own, which may crash or hang without taking anybody along.

A template's ration (`chat_template.py`) bounds the steps it takes, not what one step costs, nor how deep a value that
it ties into itself makes the renderer recurse. So it is rendered in a child (`bestiary.engine.confined`), which imports
neither torch nor transformers, with little time of the processor and little memory for each conversation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bestiary.api.errors import RequestError
from bestiary.engine.confined import ChildFailed, ConfinedProcess, limit_memory, rationed, serve_lines, told

CPU_S = 0.5
DEADLINE_S = 5.0
"""Seconds for one conversation: of the processor, and altogether, which matters where the machine is busy."""
_MEMORY_BYTES = 1 << 30
_OWN_BYTES, _BYTES_PER_CHARACTER = 48 << 20, 16
"""Of one conversation: what any template may use, and what a long conversation takes. As JSON in ASCII, where a lion is
12 characters, the longest takes 5 bytes for each."""


class TemplateProcess:
    """Renders as `render_chat` does, elsewhere. Owns the child; several threads may call."""

    def __init__(self, deadline_s: float = DEADLINE_S, cpu_s: float = CPU_S) -> None:
        self._process = ConfinedProcess("bestiary.serve.text.template_process", deadline_s=deadline_s, cpu_s=cpu_s)

    @property
    def pid(self) -> int | None:
        """The child's, while there is one."""
        return self._process.pid

    def render(self, template: str, messages: Sequence[Mapping[str, object]], **options: object) -> str:
        """As `render_chat`. Raises what it raises, and RequestError TEMPLATE_LIMIT where the child crashed or hung."""
        try:
            answer = self._process.ask(_encoded({"template": template, "messages": messages, **options}))
        except ChildFailed as failed:
            raise RequestError(
                f"the chat template {failed} and was stopped", code="TEMPLATE_LIMIT", field="chat_template"
            ) from None
        if "text" in answer:
            return str(answer["text"])
        raise RequestError(**answer["error"])

    def close(self) -> None:
        """End the child; the next `render` starts another."""
        self._process.close()


def _encoded(request: Mapping[str, object]) -> bytes:
    try:
        return json.dumps(request, default=_plain).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as cause:
        raise RequestError(
            f"messages are not plain data: {cause}", code="BAD_MESSAGES", field="messages", limit="what JSON can hold"
        ) from None


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(name): item for name, item in value.items()}
    raise TypeError(type(value).__name__)


def _answer(request: Any) -> dict[str, object]:
    from .chat_template import render_chat

    try:
        return {"text": render_chat(request.pop("template"), request.pop("messages"), **request)}
    except RequestError as error:
        return {"error": told(error)}
    except (MemoryError, RecursionError):
        return {
            "error": {"message": "the chat template does too much", "code": "TEMPLATE_LIMIT", "field": "chat_template"}
        }


def main() -> None:
    """The child."""
    limit_memory(_MEMORY_BYTES)
    import minijinja  # noqa: F401 - now, so that no conversation waits for it

    cpu_s = float(sys.argv[1])
    serve_lines(_answer, lambda size: rationed(cpu_s, _OWN_BYTES + _BYTES_PER_CHARACTER * size))


if __name__ == "__main__":
    main()
