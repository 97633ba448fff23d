"""What `bestiary models` and `doctor` show, as data: one row an architecture and claimant. Nothing is imported here.

Without `probe="run"` a row tells what metadata, earlier imports of this process and kept inspections tell; `info` is
None where nobody has looked yet (shown as "?").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from . import certificates, distributions, index, record
from .certificates import Standing
from .conformance import ModelInfo, capabilities
from .distributions import Distribution
from .entries import (
    Entry,
    LazyEntry,
    LazyRegisteredAlias,
    LazyRegisteredModel,
    RegisteredAlias,
    RegisteredModel,
    choose,
    misfit,
    not_an_alias,
)
from .errors import BestiaryError, BrokenPlugin

if TYPE_CHECKING:
    from .probe import ProbeResult
    from .registry import ProbeMode, Registry

Status = Literal["ok", "broken", "duplicate", "incompatible", "malformed"]
Verdict: TypeAlias = tuple[Status, str, tuple[str, ...]]
"""Status, cause, details."""

_NO_OBJECTION: Verdict = ("ok", "", ())
_REPLACED: Verdict = ("duplicate", "not used: the architecture was registered by hand", ())


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginRow:
    """One claim to one architecture; for malformed metadata, `architecture` is empty.

    kind: a class, or the alias of one. alias_of: the architecture that an alias names, None where nobody has looked
    yet; `target`: the distribution that provides its class, and `info` is that class's.
    """

    architecture: str
    distribution: str
    version: str
    path: str
    entry_point: str
    api_version: str
    status: Status
    cause: str = ""
    details: tuple[str, ...] = ()
    official: bool = False
    record: record.RecordStatus = "unchecked"
    info: ModelInfo | None = None
    certificate: Standing | None = None
    kind: Literal["model", "alias"] = "model"
    alias_of: str | None = None
    target: str | None = None

    def as_dict(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__slots__}
        info = None if self.info is None else self.info.as_dict()
        certificate = None if self.certificate is None else self.certificate.as_dict()
        return fields | {"details": list(self.details), "info": info, "certificate": certificate}


def plugin_rows(registry: Registry, probe: ProbeMode, *, verify: bool, choices: Mapping[str, str]) -> list[PluginRow]:
    """All rows, by architecture, then distribution.

    Args:
        probe: "never", "cached" (kept inspections only) or "run" (a child process for each unknown one).
        verify: hash every file of every plugin against its RECORD.
    """
    by_hand = registry.by_hand()
    verdicts: dict[Entry, Verdict] = dict.fromkeys(by_hand, _NO_OBJECTION)
    replaced = {entry.architecture for entry in by_hand}
    for architecture, claimants in registry.claims().items():
        for claim in claimants:
            verdicts[claim] = _REPLACED if architecture in replaced else _metadata_verdict(claim, claimants, choices)
    probes = _probe_all(registry, [entry for entry, verdict in verdicts.items() if verdict == _NO_OBJECTION], probe)
    checks = _verify_all(registry) if verify else {}
    certified = certificates.standings(registry.installation.plugins, registry.cache_directory)
    rows = [_row(registry, entry, verdict, probes.get(entry), checks, certified) for entry, verdict in verdicts.items()]
    rows = [_with_target(row, registry, rows, choices) for row in rows]
    rows.sort(key=lambda row: (row.architecture, row.distribution))
    return rows + [_malformed_row(one) for one in registry.installation.malformed]


def _probe_all(registry: Registry, entries: list[Entry], mode: ProbeMode) -> dict[Entry, ProbeResult | None]:
    """Answers about those whose metadata raise no objection: nothing refused or not chosen is imported."""
    lazy = [entry for entry in entries if isinstance(entry, LazyRegisteredModel | LazyRegisteredAlias)]
    if mode == "never" or not lazy:
        return {}
    if mode == "cached":
        return {entry: registry.prober.kept(entry) for entry in lazy}
    from concurrent.futures import ThreadPoolExecutor

    classes = {(entry.distribution, entry.value): entry for entry in lazy}  # one class often has several names
    with ThreadPoolExecutor(max_workers=2) as pool:  # each child imports torch: two are enough for any machine
        answers = dict(zip(classes, pool.map(registry.prober.probe, classes.values()), strict=True))
    return {entry: answers[entry.distribution, entry.value].named(entry.architecture) for entry in lazy}


def _verify_all(registry: Registry) -> dict[Distribution, record.RecordCheck]:
    return {distribution: record.verify(distribution) for distribution in registry.installation.plugins}


def _metadata_verdict(entry: Entry, claimants: Sequence[LazyEntry], choices: Mapping[str, str]) -> Verdict:
    """What is known without importing anything."""
    if entry.distribution is None:
        return _NO_OBJECTION
    try:
        chosen = choose(entry.architecture, claimants, choices)
    except BrokenPlugin as error:
        return ("broken", error.message, (error.fix or "",))
    except BestiaryError as error:
        return ("duplicate", error.message, error.details)
    if chosen != entry:
        return ("duplicate", f"not used: {chosen.distribution} was chosen", ())
    refused = misfit(entry)
    return _NO_OBJECTION if refused is None else ("incompatible", refused.message, (refused.fix or "",))


def _row(
    registry: Registry,
    entry: Entry,
    verdict: Verdict,
    result: ProbeResult | None,
    checks: Mapping[Distribution, record.RecordCheck],
    certified: Mapping[Distribution, Standing],
) -> PluginRow:
    status, cause, details = verdict
    info = None
    failure = registry.failure(entry)
    if isinstance(entry, RegisteredModel):
        info = capabilities(entry.model_class, entry.architecture)
    elif result is not None and result.info is not None:
        info = result.info
    if status == "ok" and failure is not None:
        status, cause, details = "broken", failure.message, failure.details
    elif status == "ok" and result is not None and result.outcome != "ok":
        status, cause, details = "broken", result.cause, result.details
    is_alias = isinstance(entry, RegisteredAlias | LazyRegisteredAlias)
    alias_of = entry.alias.architecture if isinstance(entry, RegisteredAlias) else None
    if isinstance(entry, LazyRegisteredAlias) and result is not None and result.outcome == "ok":
        alias_of, info = result.alias_of or None, None
        if alias_of is None and status == "ok":
            status, cause = "broken", not_an_alias(entry).message
    distribution = entry.distribution
    check, certificate = (
        (None, None) if distribution is None else (checks.get(distribution), certified.get(distribution))
    )
    return PluginRow(
        architecture=entry.architecture,
        distribution=distribution.name if distribution else "(by hand)",
        version=distribution.version if distribution else "",
        path=distribution.path if distribution else "",
        entry_point=entry.value,
        api_version=", ".join(distribution.api_versions) if distribution else "",
        status=status,
        cause=cause,
        details=details,
        official=distribution is not None and distribution.name in index.official(),
        record=check.status if check else "unchecked",
        info=info,
        kind="alias" if is_alias else "model",
        alias_of=alias_of,
        certificate=certificate,
    )


def _with_target(
    row: PluginRow, registry: Registry, rows: Sequence[PluginRow], choices: Mapping[str, str]
) -> PluginRow:
    """An alias's row with what is known of the class it leads to, or the reason why it leads nowhere."""
    if row.alias_of is None or row.status != "ok":
        return row
    try:
        entry = registry.entry(row.architecture, choices)
        target = registry.target(entry, row.alias_of, choices)  # type: ignore[arg-type]
    except BestiaryError as error:
        return replace(row, status="broken", cause=error.message, details=(error.fix or "",))
    name = "(by hand)" if target.distribution is None else target.distribution.name
    found = next((each for each in rows if (each.architecture, each.distribution) == (row.alias_of, name)), None)
    if found is None or found.status != "ok":
        why = "cannot be used" if found is None else f"is {found.status}: {found.cause}"
        return replace(row, status="broken", cause=f"an alias of {row.alias_of}, which {why}", target=name)
    info = None if found.info is None else replace(found.info, architecture=row.architecture)
    return replace(row, target=name, info=info)


def _malformed_row(one: distributions.Malformed) -> PluginRow:
    return PluginRow(
        architecture="",
        distribution=one.name,
        version="",
        path=one.path,
        entry_point="",
        api_version="",
        status="malformed",
        cause=one.reason,
    )
