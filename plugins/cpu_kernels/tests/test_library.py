"""Which shared object is loaded, and what is said when it cannot be."""

from __future__ import annotations

import ctypes

import pytest
from kernel_cases import ABLE

from bestiary.api.errors import BrokenPlugin, UsageError
from bestiary_cpu import _abi, _library, library


def test_the_fastest_that_runs_here_is_chosen_and_says_its_name() -> None:
    assert library().isa == ABLE[-1]
    assert str(library()) == f"bestiary_cpu ({ABLE[-1]})"
    assert [library(isa).isa for isa in ABLE] == list(ABLE)


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot run these kernels"):
        library("avx9000")


def test_the_environment_may_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_library.VARIABLE, "scalar")
    assert library.__wrapped__().isa == "scalar"
    assert library.__wrapped__(ABLE[-1]).isa == ABLE[-1]
    monkeypatch.setenv(_library.VARIABLE, "avx9000")
    with pytest.raises(UsageError, match="cannot run these kernels") as caught:
        library.__wrapped__()
    assert caught.value.field == _library.VARIABLE


def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "ABI", 0)
    _library._load.cache_clear()
    with pytest.raises(BrokenPlugin, match="another version"):
        _library._load("scalar")


def test_a_missing_library_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_path", lambda isa: None)
    _library._load.cache_clear()
    with pytest.raises(BrokenPlugin, match="no library for scalar") as caught:
        _library._load("scalar")
    assert caught.value.fix


def test_every_function_is_declared() -> None:
    native = library().native
    for name, kind in _abi.KERNELS.items():
        assert getattr(native, name).argtypes == [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        assert issubclass(kind, ctypes.Structure)
