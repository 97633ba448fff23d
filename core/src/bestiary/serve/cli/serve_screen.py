"""What `bestiary serve` shows: where the server is, how far the model is, and its log, for people or for programs."""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

from .output import clean, say, size

if TYPE_CHECKING:
    from bestiary.engine.process.messages import ModelInfo

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextScreen:
    """For people, on standard error; the URL alone goes to standard output."""

    def __init__(self, model: str, bound: socket.socket, *, open_page: bool, keys: bool) -> None:
        self._model, self._open_page, self._keys = model, open_page, keys
        self._url = url_of(bound)
        self._started = time.monotonic()

    def listening(self) -> None:
        say(f"serving {clean(self._model)}{' with API keys' if self._keys else ''}")
        print(self._url or "unix socket", flush=True)
        if self._url is not None:
            key = ' -H "authorization: Bearer $KEY"' if self._keys else ""
            say(f"  page   {self._url}/")
            say(f"  API    {self._url}/v1")
            say(f"  try    curl {self._url}/v1/chat/completions -H 'content-type: application/json'{key} \\")
            say("""           -d '{"messages": [{"role": "user", "content": "Hello!"}]}'""")
        say("listening; the model is being loaded")
        if self._open_page and self._url is not None:
            import webbrowser

            webbrowser.open(f"{self._url}/")

    def phase(self, name: str, seconds: float) -> None:
        say(f"  {seconds:6.2f} s  {name}")

    def ready(self, info: ModelInfo) -> None:
        say(
            f"ready after {time.monotonic() - self._started:.1f} s: {info.architecture} from {info.distribution} "
            f"{info.version}, {info.dtype} on {info.device}, {size(info.weight_bytes)} of weights, "
            f"{info.max_model_len} tokens of context"
        )
        say("Ctrl-C ends it")

    def ending(self, live: int, seconds: float) -> None:
        if live:
            say(f"ending: {live} answers may take {seconds:g} s; again to end them at once")
        else:
            say("ending")


class JsonScreen:
    """For programs: the same as log lines."""

    def __init__(self, model: str, bound: socket.socket, *, open_page: bool, keys: bool) -> None:
        self._model, self._url = model, url_of(bound)
        self._log = logging.getLogger("bestiary.serve")

    def listening(self) -> None:
        self._log.info("listening", extra={"model": self._model, "url": self._url})

    def phase(self, name: str, seconds: float) -> None:
        self._log.info("phase", extra={"phase": name, "seconds": seconds})

    def ready(self, info: ModelInfo) -> None:
        self._log.info("ready", extra={"architecture": info.architecture, "distribution": info.distribution})

    def ending(self, live: int, seconds: float) -> None:
        self._log.info("ending", extra={"live": live, "drain": seconds})


def url_of(bound: socket.socket) -> str | None:
    """Where a browser on this machine finds it; None for a socket in the file system."""
    if bound.family == socket.AF_UNIX:
        return None
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def set_up_logging(*, as_json: bool, requests: bool) -> None:
    """The log goes to standard error: warnings, and with `requests` a line for each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else logging.Formatter("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # of a bad request there is a line of ours
    logging.getLogger("bestiary.serve").setLevel(logging.INFO)
    logging.getLogger("bestiary.http").setLevel(logging.INFO if requests else logging.WARNING)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {name: value for name, value in vars(record).items() if name not in _OWN}
        line = {
            "time": record.created, "level": record.levelname, "logger": record.name, "message": record.getMessage()
        } | fields  # fmt: skip
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
