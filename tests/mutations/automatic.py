"""Every mistake that `mutator` can make in the model files, against their contracts: what do those not notice?

By hand, since it takes an hour: ``python -m tests.mutations.automatic [file …]``, or
``pytest -m full tests/mutations``.
"""

from __future__ import annotations

import inspect
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest

from .mutator import Mutant, mutants
from .run import calls, contract, replaced

FILES = {
    "llama_plugin.llama": ("TestLlama", "TestMistral", "TestPhi3"),
    "mixtral_plugin.mixtral": ("TestMixtral",),
    "bloom_plugin.bloom": ("TestBloom",),
    "qwen_plugin.qwen": ("TestQWen",),
    "qwen_plugin.qwen2": ("TestQwen2",),
    "qwen_plugin.qwen2_moe": ("TestQwen2Moe",),
    "qwen_plugin.qwen3": ("TestQwen3",),
    "qwen_plugin.qwen3_moe": ("TestQwen3Moe",),
}
"""Model file → the contracts of its architectures."""
LEFT_OUT = {"found", "clean_import", "readme", "shows_mistakes"}
"""Checks that do not look at the model file."""
SECONDS = 60
"""How long one check may take before the mutant counts as noticed: nobody misses a test that never ends."""


class TooLong(BaseException):
    """A check ran for more than `SECONDS`."""


def subjects(module: str) -> list[Any]:
    package = module.partition(".")[0]
    return [contract(f"{package}.contract:{name}") for name in FILES[module]]


def defaults(module: str) -> Mapping[str, Any]:
    """Fields of the configuration → the values that its class gives them."""
    config = getattr(subjects(module)[0].bench.reference(), "config", None)
    try:
        return vars(type(config)())
    except TypeError:  # a plain bag of fields
        return {}


def survivors(module: str) -> Iterator[Mutant]:
    """The mutants of a file that no check of its contracts notices."""
    tested = subjects(module)
    for mutant in mutants(inspect.getsource(import_module(module)), defaults(module)):
        started = time.monotonic()
        check = noticed_by(module, mutant, tested)
        print(f"{check or 'NOTHING'}\t{time.monotonic() - started:.2f}\t{mutant}", flush=True)
        if check is None:
            yield mutant


def noticed_by(module: str, mutant: Mutant, tested: list[Any]) -> str | None:
    """The first check that fails; references and checkpoints are kept from mutant to mutant."""
    try:
        with warnings.catch_warnings(action="ignore"), replaced(module, mutant.source):
            for subject, name, arguments in in_order(tested):
                if not passes(subject, name, arguments):
                    return name + "".join(f" ({value})" for value in arguments.values() if value != "base")
    except Exception as error:
        return f"import: {type(error).__name__}"
    finally:
        for subject in tested:
            subject.bench.drop_all()
    return None


QUICK = ("logits", "members", "pipeline", "embeddings", "greedy")


def in_order(tested: list[Any]) -> list[tuple[Any, str, dict[str, str]]]:
    """Every check of all contracts, those first that notice most in the shortest time."""
    found = [(subject, *call) for subject in tested for call in calls(subject, LEFT_OUT)]

    def rank(call: tuple[Any, str, dict[str, str]]) -> tuple[bool, int]:
        _, name, arguments = call
        return name != "logits" or arguments != {"variant": "base"}, (*QUICK, name).index(name)

    return sorted(found, key=rank)


def passes(subject: Any, name: str, arguments: dict[str, str]) -> bool:
    try:
        with limit(SECONDS):
            getattr(subject, f"test_{name}")(**arguments)
    except pytest.skip.Exception:
        return True
    except (Exception, TooLong):
        return False
    return True


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    def stop(_number: int, _frame: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    for each in sys.argv[1:] or FILES:
        left = list(survivors(each))
        print(each, len(left))
