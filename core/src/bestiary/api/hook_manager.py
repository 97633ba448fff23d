"""Loading hooks: ours from a table, others' from entry points, each isolated from the rest.

A hook module that cannot be imported, hangs or ends the process, or has a hook that raises or returns nonsense, becomes
a `HookRow` with the cause and one line in the log; the others work on. A name offered twice is an error that names
both, raised when somebody asks for that name, unless the user chooses (``kind.name=distribution``, see `choices.py`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pluggy

from bestiary import __version__

from . import choices, discovery, distributions
from .errors import BrokenPlugin, PluginError, UsageError
from .hooks import KERNELS, KINDS, PROJECT, HookSpecs
from .importing import isolated, load_object
from .probe import Question, probe
from .probe_cache import ProbeCache
from .version import incompatibility

logger = logging.getLogger("bestiary.hooks")

OWN = "bestiary"
IMPORT_TIMEOUT_S = 10.0
"""For a module of hooks, which must not import torch at its top."""
BUILTIN_HOOKS: tuple[str, ...] = (
    "bestiary.engine.builtin_hooks",
    "bestiary.engine.loader.sources",
    "bestiary.serve.text.parsers.families",
)
"""Modules of our own with hook implementations, imported when an engine starts; `register_builtin` adds to them."""

_registered: list[str] = []


def register_builtin(module: str) -> None:
    """Adds a module of core's own to those that every later `HookManager.load` imports."""
    if module not in (*BUILTIN_HOOKS, *_registered):
        _registered.append(module)


@dataclass(frozen=True, slots=True)
class Offered:
    """One name of one kind, and who offers it."""

    kind: str
    name: str
    value: Any
    distribution: str

    def __str__(self) -> str:
        shown = self.value if isinstance(self.value, str) else type(self.value).__name__
        return f"{self.distribution}: {shown}"


@dataclass(frozen=True, slots=True, kw_only=True)
class HookRow:
    """One hook module, for `doctor`: what it offers, as ``kind.name``, or why it does not."""

    distribution: str
    version: str
    entry_point: str
    status: Literal["ok", "broken", "incompatible"]
    cause: str = ""
    offers: tuple[str, ...] = ()


class HookManager:
    """The hooks of one engine (or one command).

    Args:
        installation: where to look; default: a fresh scan of `sys.path`.
        plugins: the user's choices among names offered twice.
        kernels: "auto", or "torch" to leave other packages' kernels out of `all`; None: what ``BESTIARY_KERNELS`` says,
            or "auto".
    """

    def __init__(
        self,
        installation: distributions.Installation | None = None,
        plugins: Iterable[str] | Mapping[str, str] = (),
        kernels: str | None = None,
    ) -> None:
        self.kernels = choices.kernels(kernels)
        self._installation = installation
        self._choices = choices.current(plugins)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(HookSpecs)
        self._offers: dict[tuple[str, str], list[Offered]] = {}
        self._cache: ProbeCache | None = None
        self.rows: list[HookRow] = []

    def load(self) -> HookManager:
        """Imports every hook module, ours first, and collects what they offer. Raises for our own mistakes only."""
        for module in (*BUILTIN_HOOKS, *_registered):
            offers = self._collect(load_object(module, OWN), OWN, module)
            self.rows.append(
                HookRow(distribution=OWN, version=__version__, entry_point=module, status="ok", offers=offers)
            )
        installation = discovery.scan() if self._installation is None else self._installation
        self._cache = ProbeCache(installation.versions)
        for entry, distribution in installation.providers(distributions.HOOKS):
            self.rows.append(self._load_foreign(entry, distribution))
        return self

    def _load_foreign(self, entry: distributions.EntryPoint, distribution: distributions.Distribution) -> HookRow:
        refused = incompatibility(distribution.name, distribution.version, distribution.api_versions)
        status: Literal["ok", "broken", "incompatible"] = "ok"
        why = ""
        offers: tuple[str, ...] = ()
        try:
            if refused is not None:
                raise refused
            self._try_elsewhere(entry.value, distribution)
            offers = self._collect(load_object(entry.value, f"dist {distribution}"), distribution.name, entry.value)
        except PluginError as error:
            status, why = ("incompatible" if error is refused else "broken"), error.message
            logger.warning("hooks %s of %s are left out: %s", entry.value, distribution, why)
        return HookRow(
            distribution=distribution.name,
            version=distribution.version,
            entry_point=entry.value,
            status=status,
            cause=why,
            offers=offers,
        )

    def _try_elsewhere(self, value: str, distribution: distributions.Distribution) -> None:
        """Import a module in a child process first, once an installation: one that hangs, or ends the process it is
        imported in, must not do so to us. What it merely raises is better seen here, with its traceback.
        """
        if self._cache is None or value.partition(":")[0].strip() in sys.modules:
            return
        result = self._cache.get(distribution, value)
        if result is None:
            question = Question(value=value, origin=f"dist {distribution}", kind="object")
            result = probe(question, timeout_s=IMPORT_TIMEOUT_S)
            self._cache.put(distribution, value, result)
        if result.outcome in ("crashed", "hung"):
            raise BrokenPlugin(result.cause, field=value, details=result.details)

    def _collect(self, module: Any, distribution: str, entry_point: str) -> tuple[str, ...]:
        """All that one module offers, or nothing of it: it is registered only when every hook of it answered."""
        origin = f"dist {distribution}"
        try:
            with isolated(origin, entry_point):
                self._manager.register(module, f"{distribution}:{entry_point}")
                found = [offer for kind in KINDS for offer in self._ask(kind, module, distribution)]
            unknown = _unknown_hooks(module)
            if unknown:
                raise BrokenPlugin(
                    f"{', '.join(unknown)}: no such hook (from {origin})",
                    field=entry_point,
                    limit=f"one of {', '.join(KINDS)}",
                )
        except BrokenPlugin:
            if self._manager.is_registered(module):
                self._manager.unregister(module)
            raise
        for offer in found:
            self._offers.setdefault((offer.kind, offer.name), []).append(offer)
        return tuple(f"{offer.kind}.{offer.name}" for offer in found)

    def _ask(self, kind: str, module: Any, distribution: str) -> list[Offered]:
        """One module's answer to one hook: nobody else's implementation is called."""
        others = [plugin for plugin in self._manager.get_plugins() if plugin is not module]
        answers = self._manager.subset_hook_caller(kind, others)()
        found = []
        for answer in answers:
            if not isinstance(answer, Mapping) or not all(isinstance(name, str) and name for name in answer):
                raise TypeError(f"{kind}() must return a mapping with names as keys, not {type(answer).__name__}")
            found += [Offered(kind, name, value, distribution) for name, value in answer.items()]
        return found

    def names(self, kind: str) -> tuple[str, ...]:
        """All names offered for a kind of hook, sorted; imports nothing."""
        return tuple(sorted(name for offered_kind, name in self._offers if offered_kind == kind))

    def get(self, kind: str, name: str) -> Any:
        """The object offered as `name`, imported now.

        Raises:
            UsageError: nobody offers it. BrokenPlugin: it cannot be imported, or (code ``DUPLICATE_HOOK``) two
                distributions offer it and the user did not choose.
        """
        offered = self._chosen(kind, name)
        if not isinstance(offered.value, str):
            return offered.value
        return load_object(offered.value, f"dist {offered.distribution}")

    def all(self, kind: str) -> dict[str, Any]:
        """Every object of a kind that can be had; one that cannot is left out with a line in the log."""
        found = {}
        for name in self.names(kind):
            if self._left_out(kind, name):
                continue
            try:
                found[name] = self.get(kind, name)
            except PluginError as error:
                logger.warning("%s.%s is left out: %s", kind, name, error.message)
        return found

    def _left_out(self, kind: str, name: str) -> bool:
        """Whether the user wants no kernels but core's, and this is one."""
        if self.kernels != "torch" or kind not in KERNELS:
            return False
        return all(offer.distribution != OWN for offer in self._offers[kind, name])

    def _chosen(self, kind: str, name: str) -> Offered:
        offered = {offer.distribution: offer for offer in self._offers.get((kind, name), ())}
        if not offered:
            import difflib

            near = difflib.get_close_matches(name, self.names(kind), 1)
            raise UsageError(
                f"nothing installed offers {name!r:.64} as one of {kind}",
                field=kind,
                value=name,
                limit=f"one of {', '.join(self.names(kind)) or '(none)'}",
                fix=f"did you mean {near[0]!r}?" if near else None,
            )
        wanted = self._choices.get(f"{kind}.{name}")
        if wanted is not None and wanted in offered:
            return offered[wanted]
        if len(offered) > 1 or wanted is not None:
            raise BrokenPlugin(
                f"{kind}.{name} is offered by {' and '.join(sorted(offered))}"
                + (f", not by {wanted}" if wanted is not None else ""),
                code="DUPLICATE_HOOK",
                field=kind,
                value=name,
                details=[str(offered[one]) for one in sorted(offered)],
                fix=f"--plugin {kind}.{name}={min(offered)}, or uninstall the other",
            )
        return next(iter(offered.values()))


def _unknown_hooks(module: Any) -> list[str]:
    """Functions marked as hook implementations whose name is no hook's: a misspelling would be silent otherwise."""
    marked = (name for name, value in vars(module).items() if hasattr(value, f"{PROJECT}_impl"))
    return sorted(name for name in marked if name not in KINDS)
