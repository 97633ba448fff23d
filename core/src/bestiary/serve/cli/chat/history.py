"""What was typed before, across sessions: a file with one JSON text a line, under the platform's state directory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

MOST = 1000
_MAX_BYTES = 2**22


def state_directory() -> Path | None:
    """``$BESTIARY_STATE``, else `bestiary` where the platform keeps a program's state; None where there is no home."""
    explicit = os.environ.get("BESTIARY_STATE")
    if explicit:
        return Path(explicit)
    base = {"darwin": "~/Library/Application Support", "win32": os.environ.get("LOCALAPPDATA", "~/AppData/Local")}
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser(base.get(sys.platform, "~/.local/state"))
    return Path(home) / "bestiary" if os.path.isabs(home) else None


class History:
    """Messages and commands, newest last. Where the file cannot be used, one notice says so, and all else works.

    Args:
        path: None keeps nothing.
    """

    def __init__(self, path: Path | None, say: Callable[[str], None]) -> None:
        self._path, self._say = path, say
        self.items: list[str] = [] if path is None else self._read(path)

    def add(self, text: str) -> None:
        """Keep `text`, unless it repeats the last one."""
        if not text or (self.items and self.items[-1] == text):
            return
        self.items.append(text)
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if len(self.items) > 2 * MOST:
                self._rewrite(self._path)
            else:
                with open(self._path, "a", encoding="utf-8", opener=_private) as file:
                    file.write(_line(text))
        except OSError as error:
            self._give_up(error)

    def _read(self, path: Path) -> list[str]:
        try:
            with open(path, "rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _MAX_BYTES))
                lines = file.read(_MAX_BYTES).splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            self._give_up(error)
            return []
        return [text for line in lines if (text := _text(line))][-MOST:]

    def _rewrite(self, path: Path) -> None:
        self.items = self.items[-MOST:]
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        with open(beside, "w", encoding="utf-8", opener=_private) as file:
            file.writelines(map(_line, self.items))
        os.replace(beside, path)

    def _give_up(self, error: OSError) -> None:
        self._path = None
        self._say(f"what you type is not kept for another time: {error.strerror}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _line(text: str) -> str:
    return json.dumps(text) + "\n"


def _text(line: bytes) -> str:
    """A line's text; nothing for a line that is damaged, such as the first after a cut."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""
