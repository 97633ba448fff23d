"""One server for all groups of hostile inputs."""

from __future__ import annotations

import asyncio

import pytest

from ..support.server import Server
from . import lora
from .row import KEYS
from .stage import Stage

PATIENCE = 300.0
OPTIONS = (
    "--enable-runtime-lora", "--allow-request-template", "--max-num-seqs", "32", "--api-key", KEYS[0],
    "--api-key", KEYS[1], "--served-model-name", "t0",
)  # fmt: skip


@pytest.fixture(scope="package")
def stage(t0, golden, tmp_path_factory):
    root = lora.lay(tmp_path_factory.mktemp("loras"))
    with Server(t0, *OPTIONS, "--lora-dir", str(root)) as server:
        yield Stage(server.ready(), golden)


@pytest.fixture(scope="package")
def run():
    """Runs one piece of asynchronous work."""
    with asyncio.Runner() as runner:
        yield lambda work: runner.run(asyncio.wait_for(work, PATIENCE))
