"""The shipped index: which package provides which architecture, and which packages are ours. Data, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_DATA = Path(__file__).with_name("data")


def shipped(name: str) -> Any:
    """A JSON file of `api/data`."""
    return json.loads((_DATA / name).read_text(encoding="utf-8"))


@cache
def packages() -> Mapping[str, str]:
    """Architecture → the package to install for it."""
    listed = shipped("architectures.json")["packages"]
    return {architecture: package for package, names in listed.items() for architecture in names}


@cache
def gguf_packages() -> Mapping[str, str]:
    """A GGUF file's `general.architecture` → the package to install for it."""
    return dict(shipped("architectures.json")["gguf"])


@cache
def kernel_packages() -> Mapping[str, str]:
    """A kind of device → the package of kernels to install for it."""
    return dict(shipped("architectures.json")["kernels"])


@cache
def official() -> frozenset[str]:
    """The distributions that the Bestiary authors publish."""
    return frozenset(shipped("architectures.json")["official"])
