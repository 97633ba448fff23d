"""Comparing a method with the one a protocol declares, and finding what a constructor assigns."""

from __future__ import annotations

import dis
import inspect
import re
from collections.abc import Container, Iterator
from types import CodeType, FunctionType
from typing import Any

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_STORES = ("STORE_ATTR",)
_LOADS = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")


def bound_signature(member: Any) -> inspect.Signature | None:
    """The parameters a caller passes: without `self` or `cls`. None where Python cannot tell.

    Args:
        member: as it lies in a class's `__dict__` (function, classmethod, staticmethod), or any callable.
    """
    drop_first = isinstance(member, FunctionType | classmethod)
    function = member.__func__ if isinstance(member, classmethod | staticmethod) else member
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    parameters = list(signature.parameters.values())
    if drop_first and parameters and parameters[0].kind not in _VARIADIC:
        parameters = parameters[1:]
    return signature.replace(parameters=parameters)


def declaration(name: str, member: Any) -> str:
    """A protocol's method as a line of code."""
    signature = bound_signature(member)
    if signature is None:
        return f"{name}(…)"
    decorator = "@classmethod " if isinstance(member, classmethod) else ""
    receiver = "cls" if isinstance(member, classmethod) else "self"
    text = re.sub(r"(?<=[:>] )'([^']+)'", r"\1", str(signature)).replace("''", '""')
    return f"{decorator}def {name}({receiver}{'' if text.startswith('()') else ', '}{text[1:]}"


def mismatches(expected: Any, actual: Any, *, passed: Container[str] = ()) -> Iterator[str]:
    """Why a caller who follows `expected` could not call `actual`; nothing when it could.

    Args:
        passed: parameters that callers pass besides (`SupportsPP.forward` names only what it adds).
    """
    wanted, found = bound_signature(expected), bound_signature(actual)
    if wanted is None or found is None:
        return
    if isinstance(expected, classmethod) and isinstance(actual, FunctionType):
        yield "must be a classmethod"
    has_keywords = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found.parameters.values())
    for name, parameter in wanted.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            if not has_keywords:
                yield f"does not accept **{name}"
            continue
        mine = found.parameters.get(name)
        if mine is None or mine.kind not in _NAMED:
            if not has_keywords:
                yield f"does not accept {name}= by name"
        elif mine.default is inspect.Parameter.empty and parameter.default is not inspect.Parameter.empty:
            yield f"{name} needs a default"
    for name, mine in found.parameters.items():
        if name in wanted.parameters or name in passed or mine.kind in _VARIADIC:
            continue
        if mine.default is inspect.Parameter.empty:
            yield f"requires {name}, which callers do not pass"


def assigned_names(cls: type) -> frozenset[str]:
    """Attributes that the constructors of `cls` and the methods they call assign (`self.pooler = …`).

    Read from the byte code; nothing runs. An assignment to another object's attribute of the same name counts too.
    """
    names: set[str] = set()
    seen: set[CodeType] = set()
    pending: list[Any] = [base.__dict__["__init__"] for base in cls.__mro__ if "__init__" in base.__dict__]
    while pending:
        function = pending.pop()
        code = getattr(inspect.unwrap(function) if callable(function) else function, "__code__", None)
        if not isinstance(code, CodeType) or code in seen:
            continue
        seen.add(code)
        for instruction in dis.get_instructions(code):
            if instruction.opname in _STORES:
                names.add(str(instruction.argval))
            elif instruction.opname in _LOADS:
                called = inspect.getattr_static(cls, str(instruction.argval), None)
                if isinstance(called, FunctionType):
                    pending.append(called)
    return frozenset(names)
