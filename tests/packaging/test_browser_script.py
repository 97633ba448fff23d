"""scripts/browser: it takes what there is, installs where it may, and otherwise says what to do.

PATH holds the few programs that the script needs and stand-ins that only take notes: nothing is installed here.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("bash", "env", "readlink", "dirname", "sed")


class Machine:
    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.log = folder / "log"
        self.bin.mkdir()
        self.log.touch()
        for name in NEEDED:
            (self.bin / name).symlink_to(shutil.which(name) or pytest.fail(f"no {name} here"))

    def program(self, name: str, body: str = "") -> str:
        path = self.bin / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >>"{self.log}"\n{body}\n')
        path.chmod(0o755)
        return str(path)

    def run(self, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [ROOT / "scripts/browser"], capture_output=True, text=True, timeout=60, check=False,
            env={"PATH": str(self.bin)} | environment,
        )  # fmt: skip

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_browser_that_is_there_is_taken(machine: Machine) -> None:
    path = machine.program("google-chrome")
    assert machine.run().stdout == f"{path}\n"
    other = machine.program("another")
    assert machine.run(BESTIARY_BROWSER=other).stdout == f"{other}\n"
    assert machine.calls() == []


def test_root_gets_the_systems_package_and_is_told(machine: Machine) -> None:
    machine.program("id", "echo 0")
    machine.program(
        "apt-get", f'[ "$1" = update ] || {{ : >"{machine.bin}/chromium"; /bin/chmod +x "{machine.bin}/chromium"; }}'
    )
    done = machine.run()
    assert (done.returncode, done.stdout) == (0, f"{machine.bin}/chromium\n")
    assert "installing the system's package" in done.stderr
    assert machine.calls() == ["id -u", "apt-get update -qq", "apt-get install -y -qq --no-install-recommends chromium"]


@pytest.mark.parametrize(
    ("programs", "said"),
    [
        ({"id": "echo 1000", "apt-get": ""}, "no Chromium here. Install one"),
        ({"id": "echo 0"}, "no Chromium here. Install one"),
        ({"id": "echo 0", "apt-get": "exit 100"}, "apt-get could not install chromium"),
        ({"id": "echo 0", "apt-get": ""}, "there is no such program on PATH"),
    ],
)
def test_what_cannot_be_done_is_one_message(machine: Machine, programs: dict[str, str], said: str) -> None:
    for name, body in programs.items():
        machine.program(name, body)
    done = machine.run()
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("chosen", "said"), [("none", "no browser is wanted"), ("/nowhere/chrome", "is no program")])
def test_a_choice_is_final(machine: Machine, chosen: str, said: str) -> None:
    machine.program("chromium")
    done = machine.run(BESTIARY_BROWSER=chosen)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
