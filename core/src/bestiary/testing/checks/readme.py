"""The README's table of what is checked, kept equal to what the contracts state."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path

from bestiary.api.importing import load_object
from bestiary.testing.base import ContractBase
from bestiary.testing.check import check
from bestiary.testing.failures import ContractFailure
from bestiary.testing.table import BEGIN, END, support_table, table_in

GROUP = "bestiary_contracts"


class ReadmeChecks(ContractBase):
    """`readme`."""

    @classmethod
    def why_not(cls, name: str) -> str | None:
        if name == "readme":
            readme = _readme(cls)
            if readme is None:
                return "the contract lies in no source folder with a README.md"
            if table_in(readme) is None:
                return f"README.md has no lines {BEGIN} and {END}"
        return super().why_not(name)

    @check(listed=False)
    def test_readme(self) -> None:
        """The README's table of what is checked is the one its contracts give."""
        readme = _readme(type(self))
        if readme is None or table_in(readme) == support_table(contracts_beside(type(self))):
            return
        raise ContractFailure(
            "the README's table is not what the contracts check",
            where=readme.name,
            look="bestiary certify . --write-readme writes it",
        )


def contracts_beside(contract: type[ContractBase]) -> list[type[ContractBase]]:
    """The contracts of this one's package: those its pyproject.toml declares, else those of its module."""
    folder = _source_folder(contract)
    if folder is not None:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
        declared = project.get("entry-points", {}).get(GROUP, {})
        if declared:
            return [load_object(value, folder.name) for value in declared.values()]
    module = inspect.getmodule(contract)
    found = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, ContractBase)]
    return [each for each in found if each.architecture and each.__module__ == contract.__module__] or [contract]


def _source_folder(contract: type[ContractBase]) -> Path | None:
    """The nearest folder above the contract's file that has a pyproject.toml; None in site-packages."""
    try:
        file = Path(inspect.getfile(contract)).resolve()
    except (OSError, TypeError):
        return None
    if "site-packages" in file.parts:
        return None
    return next((folder for folder in file.parents if (folder / "pyproject.toml").exists()), None)


def _readme(contract: type[ContractBase]) -> Path | None:
    folder = _source_folder(contract)
    return folder / "README.md" if folder is not None and (folder / "README.md").exists() else None
