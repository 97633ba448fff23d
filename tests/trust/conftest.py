"""T0, the oracle over it, and engine processes that the tests of one file share."""

from __future__ import annotations

import os

import pytest

from bestiary.engine.process import supervisor

from .support import chaos
from .support.canaries import Canaries, http_song
from .support.chaos import HARMLESS
from .support.completions import FIELDS
from .support.golden import Golden
from .support.scene import SONGS, Scene
from .support.server import Server
from .support.t0 import write_t0


@pytest.fixture(scope="session")
def t0(tmp_path_factory):
    return write_t0(tmp_path_factory.mktemp("t0"))


@pytest.fixture(scope="session")
def golden(t0):
    made = Golden(t0)
    yield made
    made.close()


@pytest.fixture(scope="package")
def chaos_file(tmp_path_factory):
    """While it exists, every step of a model of the chaos plugin does what is written in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(chaos.install(tmp_path_factory.mktemp("site"))))
        path = tmp_path_factory.mktemp("control") / "chaos"
        patch.setitem(os.environ, "CHAOS_FILE", str(path))
        yield path


@pytest.fixture(scope="module")
def scenes(t0, golden, chaos_file):
    """`scenes(**options)`: a `Scene`, kept as long as the same options are asked for; its engine may die as often as
    it likes."""
    kept = {}

    def close():
        for scene in kept.values():
            scene.close()
        kept.clear()

    def make(**options):
        key = tuple(sorted(options.items()))
        if key not in kept:
            close()
            kept[key] = Scene.open(t0, golden, **options)
        return kept[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor, "MOST_RESTARTS", 10_000)
        yield make
        close()


@pytest.fixture(scope="session")
def t0_server(t0):
    """A server of T0 as it is."""
    with Server(t0, "--max-queue", "256") as made:
        yield made.ready()


@pytest.fixture(scope="session")
def http_canaries(golden):
    """`http_canaries(server)`: eight streams over HTTP."""
    return lambda server: Canaries(http_song(server, FIELDS), golden, SONGS, HARMLESS)


@pytest.fixture
def case(record_property):
    """`case(id, inputs, **figures)`: which case of the programme (`cases.py`) a test tried, with how many inputs, and
    what it counted (whole numbers) or measured (others). Said also where the test then fails."""

    def note(name, inputs=1, **figures):
        record_property("case", {"id": name, "inputs": inputs, "figures": figures})

    return note
