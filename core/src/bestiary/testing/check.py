"""`@check`: what makes a method of a contract a check.

The method's name without ``test_`` is the check's name, the first line of its docstring says what is checked. A check
that a contract gives up, that does not apply, or that needs a configuration where there is none is skipped with the
reason; the reasons begin with `GIVEN_UP`, `NOT_APPLICABLE` and `NOT_CHECKED`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from bestiary.api.errors import BestiaryError

from .failures import ContractFailure, from_error

try:
    import pytest
except ImportError as error:
    raise ImportError("bestiary.testing needs pytest and gguf: pip install 'bestiary[testing]'") from error

if TYPE_CHECKING:
    from .base import ContractBase

Method = TypeVar("Method", bound=Callable[..., None])

GIVEN_UP = "given up: "
NOT_APPLICABLE = "does not apply: "
NOT_CHECKED = "not checked: "


@dataclass(frozen=True, slots=True)
class Check:
    """One check. `static`: it needs no configuration, only what is installed. `listed`: a README's table names it."""

    name: str
    summary: str
    static: bool
    listed: bool


def check(*, static: bool = False, listed: bool = True) -> Callable[[Method], Method]:
    """Marks a ``test_…`` method; see the module's docstring."""

    def decorate(method: Method) -> Method:
        name = method.__name__.removeprefix("test_")
        summary = (method.__doc__ or name).strip().splitlines()[0].rstrip(".")
        known = Check(name, summary, static, listed)

        @functools.wraps(method)
        def run(self: ContractBase, *arguments: Any, **named: Any) -> None:
            __tracebackhide__ = True
            failure: ContractFailure | None = None
            try:
                if (reason := why_skipped(type(self), known)) is not None:
                    pytest.skip(reason)
                method(self, *arguments, **named)
            except ContractFailure as found:
                failure = found.with_traceback(None)
            except (BestiaryError, ImportError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as e:
                failure = from_error(e)
                failure.__cause__ = e
            if failure is not None:
                raise failure.with_look(f'pytest -k "{type(self).__name__} and {method.__name__}" --full-trace')

        run.__dict__["check"] = known
        return run  # type: ignore[return-value]

    return decorate


def why_skipped(contract: type[ContractBase], known: Check) -> str | None:
    """Why this contract does not make this check; None where it does."""
    if known.name in contract.given_up:
        return GIVEN_UP + contract.given_up[known.name]
    if contract.config is None and not known.static:
        return NOT_CHECKED + "the contract has no config"
    reason = contract.why_not(known.name)
    return None if reason is None else NOT_APPLICABLE + reason
