"""What ranks say to each other, and how they count themselves."""

import random
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.api.alias import Alias
from bestiary.api.config import ParallelConfig
from bestiary.api.distributions import Distribution
from bestiary.api.entries import LazyRegisteredModel, RegisteredAlias, RegisteredModel, Resolution
from bestiary.api.errors import EngineError, UsageError
from bestiary.api.outputs import Logprob
from bestiary.api.sampling import SamplingParams
from bestiary.engine.parallel import workers as module
from bestiary.engine.parallel.agreement import refuse_other_settings
from bestiary.engine.parallel.by_hand import needed
from bestiary.engine.parallel.frames import LONGEST, Frames, receive_frame, send_frame
from bestiary.engine.parallel.messages import (
    AddRequest,
    Beat,
    Close,
    Drawn,
    EndRequest,
    Failed,
    Ready,
    Settings,
    Start,
    Tick,
    Trouble,
    checksum,
    decode_drawn,
    decode_from_worker,
    decode_start,
    decode_tick,
    encode,
)  # fmt: skip
from bestiary.engine.parallel.seat import Seat, device_index
from bestiary.engine.parallel.workers import LocalWorkers
from bestiary.engine.plan import SampledToken, ScheduledItem, StepPlan, StepResult
from bestiary.nn.parallel import pipeline_range

from .stateful_models import Stateful

SAMPLING = SamplingParams(
    n=2, temperature=0.3, seed=5, stop=["a", "\u00fc"], stop_token_ids=[3], logprobs=2, logit_bias={4: -1.5},
    allowed_token_ids=[4, 5], bad_token_ids=(6,), max_tokens=None,
)  # fmt: skip
PLAN = StepPlan(7, (ScheduledItem("a", 0, 3, (1, 2), True), ScheduledItem("b", 4, 1, (9,), False)))


def test_messages_arrive_as_they_were():
    events = (
        Settings((1, 2), {"seed": "0"}), AddRequest("r", (1, 2, 3), SAMPLING, -4, "salt"),
        EndRequest("r", "stop", "###"), EndRequest("s", "abort"), Close(),
    )  # fmt: skip
    tick = decode_tick(encode(Tick(events)))
    assert tick == Tick(events)
    assert tick.events[1].sampling == SAMPLING
    token = SampledToken(5, {5: Logprob(-0.1, 1), 6: Logprob(-0.30000000000000004, 2)})
    result = StepResult(7, {"a": token, "b": SampledToken(-1, error="numerical")}, {"a": [{5: Logprob(-2.0, 3)}]})
    assert decode_drawn(encode(Drawn.of(PLAN, result))).result == result
    start = Start({"model": "m", "ops": {}}, None, {"rank": 1}, (2,))
    assert decode_start(encode(start)) == start
    for message in (Ready(), Beat(3, True), Failed(Trouble("X", "what happened", value=3))):
        assert decode_from_worker(encode(message)) == message


def test_a_class_registered_by_hand_reaches_other_ranks_by_its_name():
    here = RegisteredModel("Here", Stateful)
    found = resolution(here)
    assert needed(found) == {"Here": f"{Stateful.__module__}:Stateful"}
    start = Start({}, None, {}, (), needed(found))
    assert decode_start(encode(start)) == start
    named = LazyRegisteredModel("Named", "package.module:Class")
    assert needed(resolution(named)) == {"Named": "package.module:Class"}
    distribution = Distribution("bestiary-some", "1", "", "")
    installed = LazyRegisteredModel("Some", "some:Class", distribution)
    assert needed(resolution(installed)) == {}


def resolution(entry, target=None, alias=None):
    return Resolution(
        architecture=entry.architecture, entry=entry, target=target or entry, model_class=Stateful, alias=alias
    )


def test_what_only_this_process_has_is_refused_before_others_start():
    class Local(Stateful):
        pass

    program = type("Program", (Stateful,), {"__module__": "__main__"})
    alias = Alias(architecture="Here")
    named = LazyRegisteredModel("Here", "module:Class")
    for found in (
        resolution(RegisteredModel("Here", Local)),
        resolution(RegisteredModel("Here", program)),
        resolution(RegisteredAlias("Other", alias), named, alias),
    ):
        with pytest.raises(UsageError, match="registered by hand, and other processes cannot import it"):
            needed(found)


def test_another_plan_has_another_checksum():
    others = [
        StepPlan(8, PLAN.items), StepPlan(7, PLAN.items[::-1]), StepPlan(7, PLAN.items[:1]),
        StepPlan(7, (PLAN.items[0], ScheduledItem("b", 4, 1, (8,), False))),
    ]  # fmt: skip
    assert len({checksum(plan) for plan in (PLAN, *others)}) == 5
    assert checksum(StepPlan(7, PLAN.items, finished=("z",))) == checksum(PLAN)


def test_garbage_is_an_error_and_nothing_else():
    draw = random.Random(0)
    decoders = (decode_tick, decode_drawn, decode_start, decode_from_worker)
    good = [
        encode(Tick((AddRequest("r", (1,), SAMPLING),))),
        encode(Drawn.of(PLAN, StepResult(7, {}))),
        encode(Ready()),
    ]
    for _ in range(10_000):
        data = bytearray(draw.choice(good)) if draw.random() < 0.7 else bytearray(draw.randbytes(draw.randint(0, 60)))
        for _ in range(draw.randint(1, 3)):
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        for decode in decoders:
            with suppress(EngineError):
                decode(bytes(data[: draw.randint(0, len(data))]))
    poison = msgspec.msgpack.encode({"events": [{"type": "add", "request_id": "r", "prompt_token_ids": [1],
                                                 "sampling": {"temperature": -1.0}}]})  # fmt: skip
    with pytest.raises(EngineError) as caught:
        decode_tick(poison)
    assert caught.value.error_code == "BAD_MESSAGE"


@given(st.lists(st.binary(max_size=50), max_size=6), st.randoms())
@settings(deadline=None)
def test_frames_do_not_depend_on_how_the_stream_is_cut(frames, draw):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for frame in frames:
            send_frame(ours, frame)
        ours.shutdown(socket.SHUT_WR)
        stream = theirs.recv(1 << 20, socket.MSG_PEEK)
        assert [receive_frame(theirs) for _ in frames] == frames
        assert receive_frame(theirs) is None
    reader, found = Frames(), []
    while stream:
        at = draw.randint(1, len(stream))
        found += reader.feed(stream[:at])
        stream = stream[at:]
    assert found == frames


def test_a_frame_that_is_too_long_is_refused_at_its_head():
    with pytest.raises(ValueError, match="at most"):
        list(Frames().feed((LONGEST + 1).to_bytes(4, "little")))


CHILDREN = {
    "nonsense": "import socket; s = socket.socket(fileno={descriptor}); s.sendall(b'\\x05\\0\\0\\0hello'); s.recv(9)",
    "silence": "import time; time.sleep(60)",
    "ends": "raise SystemExit(7)",
}


@pytest.mark.parametrize(
    ("child", "code", "words"),
    [("nonsense", "BAD_MESSAGE", "rank 1 spoke nonsense"), ("silence", "RANK_STALLED", "has not stirred"),
     ("ends", "RANK_DIED", "ended with exit status 7")],
)  # fmt: skip
def test_children_that_misbehave_are_ended(monkeypatch, child, code, words):
    monkeypatch.setattr(module, "_COMMAND", CHILDREN[child])
    monkeypatch.setattr(module, "FROZEN_SECONDS", 0.5)
    left = []
    workers = LocalWorkers([(rank, Start({}, None, {}, ())) for rank in (1, 2)], threads=1)
    workers.on_failure(lambda: left.append(True))
    with pytest.raises(EngineError) as caught:
        workers.wait_ready()
    assert caught.value.error_code == code
    assert words in caught.value.message.replace("rank 2", "rank 1")
    deadline = time.monotonic() + 5
    while any(_runs(pid) for pid in workers.pids.values()) and time.monotonic() < deadline:
        time.sleep(0.01)
    workers.close()
    assert not any(_runs(pid) for pid in workers.pids.values())
    assert left == [True]
    workers.close()


def test_who_asks_after_a_team_is_lost_hears_it_at_once(monkeypatch):
    monkeypatch.setattr(module, "_COMMAND", CHILDREN["ends"])
    workers = LocalWorkers([(1, Start({}, None, {}, ()))], threads=1)
    with pytest.raises(EngineError):
        workers.wait_ready()
    left = []
    workers.on_failure(lambda: left.append(True))
    workers.close()
    assert left == [True]


def _runs(pid):
    command = [sys.executable, "-c", f"import os; os.kill({pid}, 0)"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_every_rank_has_one_place():
    config = {"tensor_parallel_size": 2, "pipeline_parallel_size": 3, "data_parallel_size": 2}
    ranks = [ParallelConfig(**config, rank=rank) for rank in range(12)]
    places = [(r.data_parallel_rank, r.pipeline_parallel_rank, r.tensor_parallel_rank) for r in ranks]
    assert places == [(d, p, t) for d in range(2) for p in range(3) for t in range(2)]
    assert [ranks[0].sampler(copy) for copy in range(2)] == [places.index((0, 2, 0)), places.index((1, 2, 0))]
    with pytest.raises(UsageError, match="rank is too large"):
        ParallelConfig(**config, rank=12)


@given(st.integers(1, 60), st.data())
def test_stages_divide_the_layers(num_layers, data):
    stages = data.draw(st.integers(1, num_layers))
    ranges = [pipeline_range(num_layers, rank, stages) for rank in range(stages)]
    assert Counter(layer for start, end in ranges for layer in range(start, end)) == Counter(range(num_layers))
    sizes = [end - start for start, end in ranges]
    assert max(sizes) - min(sizes) <= 1


def test_stages_as_the_user_wants_them():
    assert [pipeline_range(6, rank, 3, (1, 3, 2)) for rank in range(3)] == [(0, 1), (1, 4), (4, 6)]
    with pytest.raises(UsageError, match="the model has 6 layers"):
        pipeline_range(6, 0, 3, (1, 3, 3))
    with pytest.raises(UsageError, match="one number of layers for each"):
        ParallelConfig(pipeline_parallel_size=2, pipeline_layers=(3,))


def test_machines_started_otherwise_are_told_in_what():
    with pytest.raises(EngineError) as caught:
        refuse_other_settings({"seed": "0", "dtype": "a"}, {"seed": "1", "dtype": "a"}, 3)
    assert caught.value.error_code == "RANKS_DISAGREE"
    assert caught.value.details == ("seed: 0 on rank 0, 1 here",)


def test_every_rank_of_a_machine_has_a_device_of_its_own():
    ranks = [Seat(rank=rank, local_size=4) for rank in range(4, 8)]  # those of a second machine
    assert [device_index(seat, 4) for seat in ranks] == [0, 1, 2, 3]
    assert [device_index(seat, 8) for seat in ranks] == [0, 1, 2, 3]
    assert [device_index(seat, 1) for seat in ranks] == [0, 0, 0, 0]
    with pytest.raises(UsageError, match="need a device each"):
        device_index(ranks[0], 3)
