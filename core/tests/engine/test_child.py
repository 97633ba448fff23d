"""The main thread of an engine process, with an engine that only plays one."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

from bestiary.api.errors import EngineError
from bestiary.engine.process.child import Worker
from bestiary.engine.process.parent import Parent


def test_a_rank_that_is_lost_while_nothing_is_asked_ends_the_engine() -> None:
    lost: list[EngineError] = []

    def check_team() -> None:
        if lost:
            raise lost[0]

    team = SimpleNamespace(on_lost=lambda: pytest.fail("nobody listens"))
    engine = SimpleNamespace(observers=(), team=team, check_team=check_team, has_unfinished_requests=False)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(engine, Parent(theirs))
        lost.append(EngineError("rank 1 was killed", code="RANK_DIED"))
        team.on_lost()
        with pytest.raises(EngineError, match="rank 1"):
            worker._take()
        with pytest.raises(EngineError, match="rank 1"):  # also where that was before anybody listened
            worker.run()
