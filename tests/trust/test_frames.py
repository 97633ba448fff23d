"""What one process may say to another (F14, I01): whatever it is, it is dropped or ends the connection, and never run.

The same frames go to both ends of the socket between a server and its engine process: to the functions that read them,
thousands, and to living processes, some.
"""

import asyncio
import itertools
import os
import random
import socket

import pytest

from bestiary import SamplingParams
from bestiary.api.errors import EngineError, RequestError
from bestiary.api.lora import LoRAInfo
from bestiary.api.outputs import Logprob
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.parallel.frames import pack
from bestiary.engine.parallel.messages import AddRequest, EndRequest, Trouble
from bestiary.engine.process import child
from bestiary.engine.process.handle import EngineProcess
from bestiary.engine.process.messages import (
    Answer,
    Beat,
    DropAdapter,
    EngineStats,
    Failed,
    Launch,
    LoadAdapter,
    Loaded,
    Phase,
    Quit,
    Stepped,
    encode,
)
from bestiary.engine.sequence import SequenceUpdate
from bestiary.serve.async_llm import AsyncLLM
from bestiary.serve.text.loading import read_tokenizer

from .support.chaos import HARMLESS
from .support.frames import damaged_stream, mutated
from .support.golden import Golden
from .support.scene import SONGS

FRAMES = [10_000, pytest.param(100_000, marks=pytest.mark.full)]
SHAPED = SamplingParams(max_tokens=4, n=2, seed=3, stop=["ab"], logit_bias={5: 1.0}, bad_token_ids=[7], logprobs=2)
TO_ENGINE = [
    encode(message)
    for message in (
        AddRequest("r", (1, 2, 3), HARMLESS), AddRequest("s", tuple(range(40)), SHAPED, -3, "salt", "adapter"),
        EndRequest("r", "abort"), EndRequest("s/0", "stop", "ab"), LoadAdapter(1, "a", "nowhere"), DropAdapter(2, "a"),
        Launch({"model": "m", "ops": {}}, (2,)), Quit(),
    )
]  # fmt: skip


@pytest.fixture
def sentinel(tmp_path):
    """The folder that only executed frames make."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def from_engine(info):
    """One of each; `info` is a `ModelInfo`."""
    token = SequenceUpdate("1", 7, {7: Logprob(-0.5, 1)}, cached_tokens=3)
    trouble = Trouble("CODE", "what happened", "field", "rule", 3, ("one", "two"), "do this")
    adapter = LoRAInfo("a", "a@1", "/nowhere", 4, ("q_proj",), 1000)
    return [
        encode(message)
        for message in (
            Phase("load", 1.5), Loaded(info), Beat(3, True), Beat(4, False), Stepped((token, token), EngineStats(1, 2)),
            Stepped((token._replace(finish_reason="stop", stop_reason="x"),), EngineStats()),
            Stepped((SequenceUpdate("2", finish_reason="error", error="CODE: words"),), EngineStats()),
            Answer(1, adapter), Answer(2, error=trouble), Failed("EngineError", trouble),
        )
    ]  # fmt: skip


# --- the server's end -----------------------------------------------------------------------------------------------


class ServerEnd:
    """An `AsyncLLM` whose engine process is played by the test."""

    def __init__(self, t0, info):
        args = EngineArgs.make(str(t0), {})
        self.llm = AsyncLLM(args, read_tokenizer(args))
        self.info, self.accepted = info, []
        self.supervisor = self.llm._supervisor
        self.supervisor._launch = self.launch

    async def launch(self, pause=0.0):
        self.supervisor.info = None
        self.supervisor._process = EngineProcess(self.supervisor._take, self.supervisor._lost)
        self.supervisor._change("starting")
        self.hear(encode(Loaded(self.info)))

    def hear(self, frame):
        self.supervisor._process.data_received(pack(frame))

    def submit(self, name):
        self.accepted.append(self.llm.submit(name, [1, 2, 3], HARMLESS))


@pytest.mark.parametrize("count", FRAMES)
def test_an_engine_process_that_says_anything(t0, golden_info, case, sentinel, count):
    good = from_engine(golden_info)
    deaths = 0

    async def work():
        nonlocal deaths
        end = ServerEnd(t0, golden_info)
        await end.launch()
        for number, frame in enumerate(itertools.islice(mutated(good, sentinel, seed=1), count)):
            if number % 50 == 0:
                end.submit(f"{number}")
            process = end.supervisor._process
            end.hear(frame)
            if end.supervisor._process is not process:
                deaths += 1
                assert end.llm.num_live == 0, "a lost engine ends every request"
                end.supervisor._deaths.clear()
                await end.launch()
            end.llm._supervisor.state = "ready"
        await end.llm.close()
        return end.accepted

    accepted = asyncio.run(work())
    assert all(each.output.finished and each.output.outputs[0].finish_reason is not None for each in accepted)
    assert deaths > count // 3
    case("F14", count, ended_the_connection=deaths)


@pytest.fixture(scope="module")
def golden_info(t0):
    """What T0's engine says of itself."""
    from bestiary.engine.build import EngineBuilder
    from bestiary.engine.process.facts import model_info

    builder = EngineBuilder(EngineArgs.make(str(t0), {"progress": False, "num_gpu_blocks_override": 16}))
    engine = builder.build()
    yield model_info(engine, builder)
    engine.shutdown()


# --- the engine's end -----------------------------------------------------------------------------------------------


class Ended(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def engine_end(monkeypatch):
    """`engine_end(stream)`: the messages that the engine process takes from a stream of bytes before it ends."""

    def end(status):
        raise Ended(status)

    def read(stream):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            ours.sendall(stream)
            ours.shutdown(socket.SHUT_WR)
            parent = child.Parent(theirs)
            with pytest.raises(Ended) as caught:
                parent._read()
        taken = []
        while not parent.inbox.empty():
            taken.append(parent.inbox.get())
        return taken, caught.value.args[0], parent

    monkeypatch.setattr(os, "_exit", end)
    return read


@pytest.mark.parametrize("count", FRAMES)
def test_a_server_that_says_anything(t0, golden, engine_end, case, sentinel, count):
    """What is taken of it, a living engine does or refuses; its answers to others are the right ones all the while."""
    own = Golden(t0, enable_prefix_caching=True, max_num_seqs=8, skip_tokenizer_init=True)
    engine, ended, refused = own.llm.engine, 0, 0
    frames = mutated(TO_ENGINE, sentinel, seed=2)
    for number in range(count // 10):
        taken, status, parent = engine_end(b"".join(pack(frame) for frame in itertools.islice(frames, 10)))
        ended += status
        worker = child.Worker(engine, parent)
        for message in taken:
            if not isinstance(message, Quit):
                try:
                    worker._apply(message)
                except (EngineError, RequestError):
                    refused += 1
        for name in [name for lane in engine.lanes.lanes for name in lane.scheduler.roster.live]:
            engine.abort(name)
        engine.observers = ()
        if number % 100 == 0:
            assert own.tokens(SONGS[number % 8], HARMLESS) == golden.tokens(SONGS[number % 8], HARMLESS)
            own._known.clear()
    assert not engine.has_unfinished_requests
    assert engine.stats().kv_cache.used_blocks == 0
    own.close()
    assert ended > count // 30
    case("F14", count, ended_the_connection=ended, refused_by_the_engine=refused)


def test_streams_with_pieces_missing(engine_end, case):
    draw = random.Random(3)
    for _ in range(2000):
        stream = damaged_stream(draw.choices(TO_ENGINE, k=4), draw)
        taken, _, _ = engine_end(stream)
        assert len(taken) <= 5
    case("F14", 2000)


# --- living processes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "times", [1, pytest.param(30, marks=pytest.mark.full), pytest.param(300, marks=pytest.mark.soak)]
)
def test_a_living_engine_process(scenes, case, sentinel, times):
    """Frames one after another until it ends; then every request ends with an error, and the next process is well."""
    scene = scenes(seed=2)
    frames, sent = mutated(TO_ENGINE, sentinel, seed=4), 0

    async def work():
        nonlocal sent
        pid = scene.llm.engine_pid
        async with scene.canaries() as canaries:
            while scene.llm.engine_pid == pid and scene.llm.state == "ready":
                scene.llm._supervisor._process._write(next(frames))
                sent += 1
                await asyncio.sleep(0.005)
            await scene.llm.wait_ready()
            await canaries.sing()
        return canaries

    for _ in range(times):
        scene.forgive()
        canaries = scene.run(work())
        assert canaries.wrong == []
    scene.run(scene.check_baseline())
    case("F14", sent)


def test_the_other_end_of_a_living_engine_process(t0, case):
    """A process that is no engine at all and talks nonsense is ended, and that is said."""
    script = (
        "import socket; s = socket.socket(fileno={descriptor}); s.recv(9); s.sendall(b'\\x05\\0\\0\\0hello'); s.recv(9)"
    )

    async def work():
        from bestiary.engine.process import handle

        gone = asyncio.get_running_loop().create_future()
        patch = pytest.MonkeyPatch()
        patch.setattr(handle, "_COMMAND", script)
        try:
            process = EngineProcess(lambda message: None, gone.set_result)
            await process.start(EngineArgs(model=str(t0)), frozenset())
            error = await gone
            await process.close()
        finally:
            patch.undo()
        return error

    error = asyncio.run(asyncio.wait_for(work(), 100))
    assert error.error_code == "BAD_MESSAGE"
    case("F14")
