"""Chat templates in a process of their own, which may crash or hang without taking anybody along.

A template's ration (`chat_template.py`) bounds the steps it takes, not what one step costs, nor how deep a value that
it ties into itself makes the renderer recurse. So it is rendered in a child: with a deadline, after which the child is
killed, and a limit on memory. The child is started at the first conversation and stays; the two speak JSON, a line each
way. It imports neither torch nor transformers.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bestiary.api.errors import EngineError, RequestError

DEADLINE_S = 2.0
_START_S = 20.0
_MEMORY_BYTES = 1 << 30
_READY = "ready"


class TemplateProcess:
    """Renders as `render_chat` does, elsewhere. Owns the child; several threads may call."""

    def __init__(self, deadline_s: float = DEADLINE_S) -> None:
        self._deadline_s = deadline_s
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, template: str, messages: Sequence[Mapping[str, object]], **options: object) -> str:
        """As `render_chat`. Raises what it raises, and RequestError TEMPLATE_LIMIT where the child crashed or hung."""
        request = _encoded({"template": template, "messages": messages, **options})
        with self._lock:
            answer = self._ask(request)
        if "text" in answer:
            return str(answer["text"])
        raise RequestError(**answer["error"])

    def close(self) -> None:
        """End the child; the next `render` starts another."""
        with self._lock:
            self._end()

    def _ask(self, request: bytes) -> Any:
        child = self._started()
        try:
            _write(child, request)
            line = _read_line(child, self._deadline_s)
        except (OSError, TimeoutError) as cause:
            self._end()
            what = f"took longer than {self._deadline_s:g} s" if isinstance(cause, TimeoutError) else "crashed"
            raise RequestError(
                f"the chat template {what} and was stopped", code="TEMPLATE_LIMIT", field="chat_template"
            ) from None
        except BaseException:
            self._end()  # its answer would be taken for the next one's
            raise
        return json.loads(line)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._end()
            path = os.pathsep.join(os.path.abspath(entry or os.curdir) for entry in sys.path if isinstance(entry, str))
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "bestiary.serve.text.template_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,
            )
            try:
                ready = json.loads(_read_line(self._child, _START_S)) == _READY
            except (OSError, TimeoutError, ValueError):
                ready = False
            if not ready:
                self._end()
                raise EngineError("the process that renders chat templates did not start", value=sys.executable)
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()

    def __del__(self) -> None:
        if self._child is not None:
            self._end()


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


def _write(child: subprocess.Popen[bytes], data: bytes) -> None:
    if child.stdin is None:
        raise BrokenPipeError
    os.set_blocking(child.stdin.fileno(), True)
    child.stdin.write(data)
    child.stdin.flush()


def _read_line(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """The next line; raises TimeoutError, or BrokenPipeError where the child ended first."""
    if child.stdout is None:
        raise BrokenPipeError
    descriptor, deadline, parts = child.stdout.fileno(), time.monotonic() + seconds, [b""]
    while not parts[-1].endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([descriptor], [], [], left)[0]:
            raise TimeoutError
        parts.append(os.read(descriptor, 1 << 20))
        if not parts[-1]:
            raise BrokenPipeError
    return b"".join(parts)


def _limit_resources() -> None:
    import resource

    for kind, limit in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, _MEMORY_BYTES)):
        hard = resource.getrlimit(kind)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (value, value))


def _answer(line: str) -> dict[str, object]:
    from .chat_template import render_chat

    request = json.loads(line)
    try:
        return {"text": render_chat(request.pop("template"), request.pop("messages"), **request)}
    except RequestError as error:
        shown = error.as_dict()
        fields = {name: shown[name] for name in ("message", "code", "field", "value", "fix")}
        return {"error": {**fields, "limit": shown["rule"]}}
    except (MemoryError, RecursionError):
        return {
            "error": {"message": "the chat template does too much", "code": "TEMPLATE_LIMIT", "field": "chat_template"}
        }


def main() -> None:
    """The child: a line in, a line out, until there are no more."""
    _limit_resources()
    import minijinja  # noqa: F401 - now, so that no conversation waits for it

    print(json.dumps(_READY), flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(line)), flush=True)


if __name__ == "__main__":
    main()
