"""`bestiary new`: a plugin project that passes its own contract, to be changed from there."""

from __future__ import annotations

import importlib.util
import keyword
import re
import string
import sys
from pathlib import Path

import click

from bestiary import __version__
from bestiary.api import index, version
from bestiary.api.distributions import normalise
from bestiary.api.errors import UsageError
from bestiary.api.registry import ModelRegistry

from .certify import require_testing
from .options import debug_option

TEMPLATES = Path(__file__).with_name("plugin_template")
SUFFIX = "ForCausalLM"
FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    ".github/workflows/ci.yml": "ci.yml",
    "src/%{package}/__init__.py": "init.py",
    "src/%{package}/py.typed": "",
    "src/%{package}/model.py": "model.py",
    "src/%{package}/contract.py": "contract.py",
    "tests/test_%{package}.py": "test.py",
}
"""Path in the project → its template; "" is an empty file."""

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_MAX_NAME = 64


class _Template(string.Template):
    """``%{name}``: a mark that neither Python, Markdown nor GitHub's workflows use."""

    delimiter = "%"
    idpattern = r"(?!)"
    braceidpattern = "[a-z]+"


@click.command()
@click.argument("name")
@click.option(
    "--architecture",
    help="The name in config.json.  [default: NAME in camel case, and ForCausalLM, as transformers spells it]",
)
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to make the project.  [default: NAME, in lower case, here]",
)
@debug_option
def new(name: str, architecture: str | None, folder: Path | None) -> None:
    """Start a plugin project that passes its own contract.

    NAME is that of the package on the index, such as my-model: the module is my_model, the class MyModelForCausalLM.
    """
    require_testing("new")
    distribution, package = _checked_names(name)
    architecture = _checked_architecture(architecture or _as_transformers_spells(_camel(name) + SUFFIX))
    place = folder or Path(distribution)
    values = {
        "distribution": distribution,
        "package": package,
        "architecture": architecture,
        "stem": architecture.removesuffix(SUFFIX) or architecture,
        "core": _core_requirement(),
        "api": version.text(version.API_VERSION),
    }
    _write(place, values)
    _write_table(place)
    _say_what_next(place, values)


def _checked_names(name: str) -> tuple[str, str]:
    """The distribution's name in normal form (PEP 503) and the package's."""
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise UsageError(
            "this cannot be a package's name", field="NAME", value=name,
            limit=f"letters, digits and -, _ or . between them; at most {_MAX_NAME} (PEP 508)",
        )  # fmt: skip
    distribution = normalise(name)
    package = distribution.replace("-", "_")
    if not package.isidentifier() or keyword.iskeyword(package):
        raise UsageError(
            f"{package} cannot be a module's name", field="NAME", value=name, limit="a Python identifier, no keyword"
        )
    installed = ModelRegistry.installation.versions
    if distribution in index.official():
        raise UsageError(
            "this is the name of one of Bestiary's own packages", field="NAME", value=name, fix="choose another name"
        )
    if distribution in installed:
        raise UsageError(
            f"{distribution} {installed[distribution]} is installed here", field="NAME", value=name,
            fix=f"choose another name, or pip uninstall {distribution}",
        )  # fmt: skip
    if package in sys.stdlib_module_names or importlib.util.find_spec(package) is not None:
        raise UsageError(
            f"there is a module {package} already; import would find that", field="NAME", value=name,
            fix="choose another name",
        )  # fmt: skip
    return distribution, package


def _checked_architecture(name: str) -> str:
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name) or len(name) > _MAX_NAME:
        raise UsageError(
            "this cannot be an architecture's name", field="--architecture", value=name,
            limit=f"a Python class's name, at most {_MAX_NAME} characters",
        )  # fmt: skip
    owners = [claim.distribution.name for claim in ModelRegistry.claims().get(name, ()) if claim.distribution]
    owner = owners[0] if owners else index.packages().get(name)
    if owner is not None:
        raise UsageError(
            f"{owner} provides {name}; two packages that claim one name are an error for whoever has both",
            field="--architecture", value=name, fix="choose another: --architecture NAME",
        )  # fmt: skip
    return name


def _camel(name: str) -> str:
    """Capitals that were typed stay."""
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[-_.]+", name))


def _as_transformers_spells(architecture: str) -> str:
    """Checkpoints have transformers' capitals: gpt-neox is GPTNeoXForCausalLM there."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    spelled: dict[str, str] = {name.casefold(): name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
    return spelled.get(architecture.casefold(), architecture)


def _core_requirement() -> str:
    """This core or a later one that keeps the interface: before 1.0 a minor version may change it."""
    major, minor, *_ = (*re.findall(r"\d+", __version__), "0", "0")
    upper = f"0.{int(minor) + 1}" if major == "0" else str(int(major) + 1)
    return f">={major}.{minor},<{upper}"


def _write(place: Path, values: dict[str, str]) -> None:
    """All files, or none where the folder has something in it."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        if any(place.iterdir()):
            raise UsageError(
                "this folder is not empty", field="--folder", value=str(place), fix="name another: --folder DIRECTORY"
            )
        for path, template in FILES.items():
            file = place / _Template(path).substitute(values)
            file.parent.mkdir(parents=True, exist_ok=True)
            text = (TEMPLATES / f"{template}.template").read_text(encoding="utf-8") if template else ""
            file.write_text(_Template(text).substitute(values), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"the project cannot be written: {error.strerror}", field="--folder", value=str(place),
            fix="name a folder that can be written: --folder DIRECTORY",
        ) from error  # fmt: skip


def _write_table(place: Path) -> None:
    """What the new contract checks, into the new README."""
    from bestiary.testing import write_table
    from bestiary.testing.certify.project import table_of

    write_table(place / "README.md", table_of(place))


def _say_what_next(place: Path, values: dict[str, str]) -> None:
    print(f"{place}: {values['architecture']}, in the package {values['distribution']}")
    for path in FILES:
        print(f"  {_Template(path).substitute(values)}")
    print(f"""
next:
  cd {place}
  pip install -e '.[testing]'
  pytest                     # its contract: equal to the reference, under every schedule
  bestiary certify .         # the same, on the wheel that would be published

Then change src/{values["package"]}/model.py and, in contract.py, the configuration and the reference.""")
