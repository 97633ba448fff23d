"""The promise to plugins as data: what a plugin written for API major 1 may call, and how.

`api_1.json` records every exported name with its parameters (True: must be given), its public methods, and for a
protocol what a class owes. `broken(recorded, found)` lists what a plugin could notice; additions it could not.
`python tests/architecture/api_surface.py` adds what is new, and refuses to forget anything.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from bestiary.api.version import API_VERSION

MODULES = ("bestiary.api", "bestiary.nn")
RECORD = Path(__file__).with_name(f"api_{API_VERSION[0]}.json")

Surface = dict[str, dict[str, Any]]


def surface() -> Surface:
    """``module.name`` → its parameters, methods and owed members."""
    found: Surface = {}
    for module_name in MODULES:
        module = import_module(module_name)
        for name in module.__all__:
            found[f"{module_name}.{name}"] = _describe(getattr(module, name))
    return dict(sorted(found.items()))


def _describe(value: Any) -> dict[str, Any]:
    if not isinstance(value, type):
        return {"parameters": _parameters(value)} if callable(value) else {}
    if getattr(value, "_is_protocol", False):
        return {"owed": _owed(value)}
    methods = {
        name: _parameters(member.__func__ if isinstance(member, classmethod | staticmethod) else member)
        for owner in reversed(value.__mro__)
        if owner is value or (owner.__module__.startswith("bestiary.") and not getattr(owner, "_is_protocol", False))
        for name, member in vars(owner).items()
        if not name.startswith("_") and callable(getattr(value, name, None)) and not isinstance(member, type)
    }
    return {"parameters": _parameters(value), "methods": methods}


def _parameters(function: Any) -> dict[str, bool]:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return {}
    return {
        each.name: each.default is each.empty
        for each in signature.parameters.values()
        if each.name not in ("self", "cls") and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }


def _owed(protocol: type) -> list[str]:
    """Members without a default: annotations without a value, methods that nobody provides."""
    annotations = [name for name in inspect.get_annotations(protocol) if name not in vars(protocol)]
    methods = [
        name
        for name, member in vars(protocol).items()
        if inspect.isfunction(member) or isinstance(member, classmethod)
        if name in ("__init__", "forward") or not name.startswith("_")
        if not getattr(member, "__bestiary_provided__", False) and member.__module__ == protocol.__module__
    ]
    return sorted(annotations + methods)


def broken(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[str]:
    """What a plugin written against `recorded` would notice."""
    for name, old in recorded.items():
        new = found.get(name)
        if new is None:
            yield f"{name} is gone"
            continue
        yield from _calls(name, old.get("parameters", {}), new.get("parameters", {}))
        for method, parameters in old.get("methods", {}).items():
            if method not in new.get("methods", {}):
                yield f"{name}.{method} is gone"
            else:
                yield from _calls(f"{name}.{method}", parameters, new["methods"][method])
        for member in set(new.get("owed", ())) - set(old.get("owed", ())):
            yield f"{name} asks classes for {member}, which it did not"


def _calls(name: str, old: Mapping[str, bool], new: Mapping[str, bool]) -> Iterator[str]:
    for parameter in old:
        if parameter not in new:
            yield f"{name} no longer takes {parameter}"
    for parameter, required in new.items():
        if required and not old.get(parameter, False):
            yield f"{name} requires {parameter}, which it did not"


def recorded() -> Surface:
    found: Surface = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    return found


def main() -> None:
    found = surface()
    problems = list(broken(recorded(), found))
    if problems:
        raise SystemExit("\n".join(["plugins of this major would break:", *problems]))
    RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
