"""What a failed check says: what differed, by how much, where, the likely causes, and where to look next."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bestiary.api.errors import BestiaryError

_PARTS_OF_OURS = (f"{Path(__file__).parents[1]}",)
_LIBRARIES = ("site-packages/torch/", "site-packages/transformers/", "/importlib/", "<frozen", "contextlib.py")


class ContractFailure(AssertionError):
    """A check that did not hold. Reads like one of Bestiary's errors; the attributes are for programs.

    Attributes:
        message: what differed. where: prompt, position, module. details: one line for each offender.
        likely: causes to think of first. look: what to run or read next.
    """

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        got: object = None,
        allowed: object = None,
        details: Sequence[str] = (),
        likely: Sequence[str] = (),
        look: str | None = None,
    ) -> None:
        self.message = message
        self.where = where
        self.got = got
        self.allowed = allowed
        self.details = tuple(details)
        self.likely = tuple(likely)
        self.look = look
        fields = {"where": where, "got": got, "allowed": allowed}
        lines = [message, *(f"  {name + ':':<9}{value}" for name, value in fields.items() if value is not None)]
        lines += [f"  - {detail}" for detail in self.details[:_SHOWN]]
        if len(self.details) > _SHOWN:
            lines.append(f"  - … and {len(self.details) - _SHOWN} more")
        lines += [f"  {'likely:' if not number else '':<9}{cause}" for number, cause in enumerate(self.likely)]
        if look is not None:
            lines.append(f"  look:    {look}")
        super().__init__("\n".join(lines))

    def with_detail(self, detail: str) -> ContractFailure:
        """The same failure with one more line."""
        return self._again(details=(*self.details, detail))

    def with_look(self, look: str) -> ContractFailure:
        """The same failure with this command, where it has none."""
        return self if self.look is not None else self._again(look=look)

    def _again(self, **changed: Any) -> ContractFailure:
        kept = {name: getattr(self, name) for name in ("where", "got", "allowed", "details", "likely", "look")}
        made = ContractFailure(self.message, **kept | changed)
        made.__cause__, made.__suppress_context__ = self.__cause__, True
        return made


_SHOWN = 20


def from_error(error: BaseException) -> ContractFailure:
    """A check that ended in an exception instead of an answer, with the author's line that raised it."""
    if isinstance(error, BestiaryError):
        return ContractFailure(str(error), where=authors_line(error))
    text = "".join(traceback.format_exception_only(error)).strip()
    return ContractFailure(f"the check could not be made: {text}", where=authors_line(error))


def authors_line(error: BaseException) -> str | None:
    """``file.py:12 in forward``: the innermost frame neither ours nor a library's, at the root of the causes."""
    root: BaseException = error
    while (cause := root.__cause__ or root.__context__) is not None:
        root = cause
    for frame in reversed(traceback.extract_tb(root.__traceback__)):
        name = frame.filename
        if not name.startswith(_PARTS_OF_OURS) and not any(library in name for library in _LIBRARIES):
            return f"{Path(name).name}:{frame.lineno} in {frame.name}"
    return None
