"""`ContractBase`: what a contract states, checked when its class is made. The checks build on it (`checks/`)."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from bestiary.api.errors import UsageError

from .check import Check

if TYPE_CHECKING:
    from torch import nn

    from .workbench import Workbench

BASE = "base"
"""The name of the configuration itself, among the variants."""
MIN_REASON = 10


class ContractBase:
    """See `contract.ModelContract`."""

    __test__: ClassVar[int] = 0
    is_contract: ClassVar[bool] = True
    static_checks: ClassVar[frozenset[str]] = frozenset()

    architecture: ClassVar[str] = ""
    config: ClassVar[Mapping[str, Any] | None] = None
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    refused: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    gguf: ClassVar[str | None] = None
    gguf_variants: ClassVar[Sequence[str]] = ()
    bf16_bound: ClassVar[float] = 0.08
    smooth_variant: ClassVar[str] = BASE
    quantization_bounds: ClassVar[Mapping[str, float]] = {}
    optional_weights: ClassVar[tuple[str, ...]] = ()
    other_names: ClassVar[Mapping[str, tuple[str, str]]] = {}
    without_effect: ClassVar[Mapping[str, str]] = {}
    given_up: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.static_checks = frozenset(known.name for known in cls._checks() if known.static)
        cls.__test__ = 1 if cls.architecture else 0  # with True, pytest would collect it under any name
        if cls.architecture:
            _check_statements(cls)

    _bench: ClassVar[Workbench | None] = None

    @property
    def bench(self) -> Workbench:
        """This class's references, checkpoints and engines; freed by `teardown_class`, which pytest calls."""
        from .workbench import Workbench

        cls = type(self)
        if cls._bench is None or "_bench" not in vars(cls):
            cls._bench = Workbench(self)
        return cls._bench

    @classmethod
    def teardown_class(cls) -> None:
        made, cls._bench = vars(cls).get("_bench"), None
        if made is not None:
            made.close()

    def reference(self, config: dict[str, Any]) -> nn.Module:
        """The model to be equalled: ids ``[1, n]`` → logits ``[1, n, vocabulary]``, or an object with `.logits`.

        By default transformers' class for the `model_type`. An author's own gets random weights and is saved under its
        own parameters' names, which are then the checkpoint's.
        """
        from .reference import transformers_reference

        return transformers_reference(config, self.architecture)

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """A check with a parameter that `parameters` knows runs once for each of its values."""
        for name, values in self.parameters().items():
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, values)

    @classmethod
    def parameters(cls) -> dict[str, Sequence[str]]:
        """Parameter of checks → its values. Topics add theirs."""
        return {"variant": [BASE, *cls.variants]}

    @classmethod
    def _checks(cls) -> list[Check]:
        """Those of this class, bases' first, in the order they are written."""
        found: dict[str, Check] = {}
        for owner in reversed(cls.__mro__):
            for name, member in vars(owner).items():
                known = getattr(member, "check", None)
                if name.startswith("test_") and isinstance(known, Check):
                    found[known.name] = known
        return list(found.values())

    @classmethod
    def checks(cls) -> dict[str, str]:
        """The name of each check → one line saying what it checks."""
        return {known.name: known.summary for known in cls._checks()}

    @classmethod
    def why_not(cls, name: str) -> str | None:
        """Why a check has nothing to say about this architecture; None where it has. Topics override it."""
        return None


def _check_statements(cls: type[ContractBase]) -> None:
    problems = [*_misspelt(cls), *_wrong_kinds(cls), *_wrong_reasons(cls)]
    if problems:
        raise UsageError(
            f"the contract {cls.__name__} is not well-formed: {len(problems)} problem(s)",
            field=cls.__qualname__,
            details=problems,
            fix="correct the class; bestiary.testing.contract says what it may state",
        )


def _misspelt(cls: type[ContractBase]) -> list[str]:
    known = [name for name in vars(ContractBase) if not name.startswith("_")]
    found = []
    for name in vars(cls):
        near = difflib.get_close_matches(name, known, 1, 0.8) if name not in known and name[0] != "_" else []
        if near and not name.startswith("test_"):
            found.append(f"{name}: nothing reads it; did you mean {near[0]}?")
    return found


def _wrong_kinds(cls: type[ContractBase]) -> list[str]:
    found = []
    for name in ("config", "variants", "refused", "quantization_bounds", "other_names", "without_effect", "given_up"):
        if not isinstance(getattr(cls, name), Mapping) and (name, getattr(cls, name)) != ("config", None):
            found.append(f"{name}: must be a mapping")
    for name, changed in cls.variants.items() if isinstance(cls.variants, Mapping) else ():
        if not isinstance(changed, Mapping) or name == BASE:
            found.append(f"variants[{name!r}]: must be a mapping of changed fields, under another name than {BASE!r}")
    found += [f"gguf_variants: {name!r} is no variant" for name in cls.gguf_variants if name not in cls.variants]
    if cls.smooth_variant not in (BASE, *cls.variants):
        found.append(f"smooth_variant: {cls.smooth_variant!r} is no variant")
    if not isinstance(cls.bf16_bound, int | float) or not 0 < cls.bf16_bound < 1:
        found.append(f"bf16_bound: must be between 0 and 1, relative to the logits' norm; it is {cls.bf16_bound!r}")
    return found


def _wrong_reasons(cls: type[ContractBase]) -> list[str]:
    found, known = [], cls.checks()
    for name, reason in cls.given_up.items() if isinstance(cls.given_up, Mapping) else ():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
            found.append(f"given_up[{name!r}]: there is no such check; {hint}")
        if not isinstance(reason, str) or len(reason.strip()) < MIN_REASON:
            found.append(f"given_up[{name!r}]: needs a reason of at least {MIN_REASON} characters; it is {reason!r}")
    return found
