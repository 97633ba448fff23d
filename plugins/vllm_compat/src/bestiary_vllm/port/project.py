"""The project that is written around ported files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bestiary.api.distributions import normalise
from bestiary.api.errors import UsageError
from bestiary.api.version import API_VERSION, text
from bestiary_vllm import table

from . import skeleton
from .gathering import OWN_MODELS, Gathered, copy
from .needs import Need

CORE = ">=0.1,<0.2"
"""Which core, and which version of this wheel, a project is written for: this wheel's own requirement."""
_BROUGHT_BY_CORE = {"torch", "transformers", "numpy", "safetensors", "bestiary"}

PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "{distribution}"
version = "0.1.0"
description = "{about}, written for vLLM, for Bestiary"
readme = "README.md"
requires-python = ">=3.11"
# license = the ported files' own
dependencies = [{dependencies}]

[project.optional-dependencies]
testing = ["bestiary[testing]"]

# The name is the architecture as it stands in a model's config.json, the value is module:Class.
[project.entry-points.vllm_models]
{models}

{registrars}[project.entry-points.bestiary_api]
"{api}" = "{package}"

# What `bestiary certify` checks; the name is the architecture's.
[project.entry-points.bestiary_contracts]
{contracts}

[tool.hatch.build.targets.wheel]
only-include = ["src/{package}", "src/{contract}.py"]
sources = ["src"]
"""

_REGISTRARS = """\
# Called before a model is imported, for what is registered beside it, such as a configuration class.
[project.entry-points."vllm.general_plugins"]"""

README = """\
# {distribution}

{about} for Bestiary. The model files are as they were written for vLLM: `bestiary port` put the project around them.

```
pip install .
bestiary generate path/to/model "Once upon a time"
```

`src/{contract}.py` says what is promised, on a tiny model with random weights. Look it over; `bestiary certify .`
checks it.
"""


@dataclass(frozen=True, kw_only=True)
class Project:
    """What is to be written, and where.

    Attributes:
        architectures: name → (module as the files import it, class). registrars: (module, function) of those that
            register what goes with them.
    """

    folder: Path
    distribution: str
    package: str
    gathered: Gathered
    architectures: Mapping[str, tuple[str, str]]
    registrars: Sequence[tuple[str, str]]
    needs: Iterable[Need]

    @property
    def contract(self) -> str:
        return f"{self.package}_contract"

    def module(self, module: str) -> str:
        """The module's name in the new package."""
        return f"{self.package}{module.removeprefix(self.gathered.root)}"

    def write(self) -> list[str]:
        """All files, or none where the folder has something in it; returns their paths.

        Raises:
            UsageError: the folder is not empty, or cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(self.folder.iterdir()):
                raise UsageError(
                    "this folder is not empty", field="--into", value=str(self.folder), fix="name another: --into DIR"
                )
            package = self.folder / "src" / self.package
            copy(self.gathered, package)
            for path, content in self._texts().items():
                place = self.folder / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(content, encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"the project cannot be written: {error.strerror}", field="--into", value=str(self.folder)
            ) from error
        return sorted(str(each.relative_to(self.folder)) for each in self.folder.rglob("*") if each.is_file())

    def _texts(self) -> dict[str, str]:
        names = list(self.architectures)
        facts = {
            "distribution": self.distribution,
            "package": self.package,
            "contract": self.contract,
            "about": ", ".join(names),
            "api": text(API_VERSION),
            "registrars": "",
            "dependencies": ", ".join(f'"{each}"' for each in self._dependencies()),
            "models": "\n".join(
                f'{name} = "{self.module(module)}:{cls}"' for name, (module, cls) in self.architectures.items()
            ),
            "contracts": "\n".join(f'{name} = "{self.contract}:{skeleton.test_class(name)}"' for name in names),
        }
        if self.registrars:
            lines = [f'{name} = "{self.module(module)}:{name}"' for module, name in self.registrars]
            facts["registrars"] = "\n".join([_REGISTRARS, *lines, "", ""])
        imported = ", ".join(skeleton.test_class(name) for name in names)
        all_names = ", ".join(f'"{skeleton.test_class(name)}"' for name in names)
        return {
            "pyproject.toml": PYPROJECT.format(**facts),
            "README.md": README.format(**facts),
            f"src/{self.contract}.py": skeleton.contract(names),
            f"tests/test_{self.package}.py": f'"""The contracts are the tests."""\n\n'
            f"from {self.contract} import {imported}\n\n__all__ = [{all_names}]\n",
            **self._around_a_file(),
        }

    def _around_a_file(self) -> dict[str, str]:
        """Where one file is ported: the package's own modules, and what relative imports find in it."""
        if self.gathered.folder is not None:
            return {}
        package = f"src/{self.package}"
        found = {
            f"{package}/__init__.py": '"""Model files written for vLLM, as they are."""\n\nVLLM_MODEL_FILES = True\n'
        }
        for module, names in self.gathered.reexports.items():
            place = f"{package}/{self.gathered.place(module)}"
            imports = "\n".join(f"{_import_of(module, name)}  # noqa: F401" for name in sorted(names))
            found[place] = f'"""Stands for {module}, which the file beside it imports relatively."""\n\n{imports}\n'
        for path in [*found, *(f"{package}/{self.gathered.place(module)}" for module in self.gathered.sources)]:
            for folder in Path(path).parents:
                if folder != Path(package) and Path(package) in folder.parents:
                    found.setdefault(f"{folder}/__init__.py", "VLLM_MODEL_FILES = True\n")
        return found

    def _dependencies(self) -> list[str]:
        from importlib_metadata import packages_distributions

        brought = packages_distributions()
        others = {need.name for need in self.needs if need.state == "installed" and need.how != "optional"}
        names = {normalise(brought[each][0]) for each in others - _BROUGHT_BY_CORE if each in brought}
        return [f"bestiary{CORE}", f"bestiary-vllm{CORE}", *sorted(names - _BROUGHT_BY_CORE)]


def _import_of(module: str, name: str) -> str:
    """The line that imports a served name. A model file's path leads to the file beside the importer, which is the
    module that this line is written into: it is taken from where it is."""
    symbol = table.find(module, name)
    target = "" if symbol is None else symbol.target or ""
    if not target.startswith(OWN_MODELS):
        return f"from {module} import {name}"
    place, _, own = target.partition(":")
    return f"from {place} import {own}" + (f" as {name}" if own != name else "")
