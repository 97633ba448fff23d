"""What is left of requests when they are over: nothing (LK1–LK4)."""

import asyncio
import gc
import json
import random
import signal

import pytest

from bestiary import LLM

from .support import census
from .support.adapters import write_adapters
from .support.baseline import Holding, alive, family
from .support.client import ask
from .support.memory import holdings, port_is_free
from .support.server import Server
from .support.sizes import sizes
from .support.t0 import CHATML, CONTEXT, VOCAB
from .support.traffic import COMPLETIONS, Traffic, order
from .support.watch import Watch

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
PROMPT = {"prompt": [40, 41, 42], "max_tokens": 4, "ignore_eos": True, "temperature": 0}
OPTIONS = ("--num-gpu-blocks-override", "256", "--max-queue", "1000", "--allow-request-template")
"""Few blocks of the KV cache, for each is given by the system when it is first written, and then kept."""
MOST_KEPT_OF_A_TEXT = 84 << 20
MOST_OF_ENGINES = 4 << 20


def run(work, seconds=7200):
    return asyncio.run(asyncio.wait_for(work, seconds))


@pytest.fixture(scope="module")
def watch(t0, tmp_path_factory):
    folder = tmp_path_factory.mktemp("census")
    with Server(t0, *OPTIONS, environment=census.install(folder)).ready() as server:
        yield Watch(server, folder)


@pytest.mark.parametrize("requests", sizes("LK1"))
def test_requests_of_every_kind_leave_nothing(watch, golden, case, requests):
    """LK1."""
    traffic = Traffic(watch.server.port, golden)

    async def asking(connection, number):
        await traffic.serve(connection, order(number))

    figures, grown = run(watch.run(asking, requests))
    assert not traffic.tally.wrong, "\n".join(traffic.tally.wrong[:5])
    assert sum(traffic.tally.ended.values()) == figures["asked"]
    assert not grown, "\n".join(grown)
    case("LK1", requests, **figures)


@pytest.mark.parametrize("requests", sizes("LK2"))
def test_what_nobody_had_before_leaves_nothing(watch, case, requests):
    """LK2: grammars, templates, names and salts, each of them once: no cache grows beyond its bounds."""

    async def grammar(connection, number):
        body = PROMPT | {"structured_outputs": {"regex": f"[a-z]{{2,5}}{number}"}}
        return await connection.whole(COMPLETIONS, body)

    async def schema(connection, number):
        body = PROMPT | {"structured_outputs": {"json": {"type": "object", "properties": {f"n{number}": {}}}}}
        return await connection.whole(COMPLETIONS, body)

    async def template(connection, number):
        body = {"messages": HI, "max_tokens": 2, "chat_template": f"{{# {number} #}}{CHATML}"}
        return await connection.whole(CHAT, body)

    async def name(connection, number):
        status, body = await connection.whole(COMPLETIONS, PROMPT | {"model": f"model-{number}"})
        return 200 if status == 404 else status, body

    async def salt(connection, number):
        field = f"field-{number % 5000}"  # the JSON library's own cache has room for 16,384 names
        more = {"cache_salt": f"salt-{number}", "user": f"user-{number}", field: 1}
        return await connection.whole(COMPLETIONS, PROMPT | more)

    kinds = (grammar, schema, template, name, salt)

    async def asking(connection, number):
        kind = kinds[number % len(kinds)]
        status, body = await kind(connection, number)
        assert status == 200, (kind.__name__, body)

    until_caches_are_full = 7_000 if requests >= 10_000 else 0
    figures, grown = run(watch.run(asking, requests, until_caches_are_full))
    assert not grown, "\n".join(grown)
    case("LK2", requests, **figures)


@pytest.mark.parametrize("requests", sizes("LK2a"))
def test_adapters_leave_nothing(t0, tmp_path, case, requests):
    """LK2: each is loaded, answers, and is unloaded, under a name that none had before.

    The safetensors library (0.8.0) keeps two integers of every tensor it reads, which is 1 KiB of an adapter here."""
    folder, alone = tmp_path / "census", asyncio.Semaphore(4)
    folder.mkdir()
    write_adapters(tmp_path / "adapters")

    async def asking(connection, number):
        name = {"lora_name": f"adapter-{number}"}
        asked = (
            ("/v1/load_lora_adapter", name | {"lora_path": "abc"[number % 3]}),
            (COMPLETIONS, PROMPT | {"model": name["lora_name"]}),
            ("/v1/unload_lora_adapter", name),
        )
        async with alone:  # there is room for some at a time
            for path, body in asked:
                status, answer = await connection.whole(path, body)
                assert status == 200, answer

    options = ("--enable-runtime-lora", "--lora-dir", str(tmp_path / "adapters"))
    with Server(t0, *OPTIONS, *options, environment=census.install(folder)).ready() as server:
        figures, grown = run(Watch(server, folder).run(asking, requests))
    assert not grown, "\n".join(grown)
    case("LK2", requests, **{f"adapters_{name}": value for name, value in figures.items()})


REFUSED = (
    (COMPLETIONS, b"{"),
    (COMPLETIONS, json.dumps(PROMPT | {"max_tokens": 0}).encode()),
    (COMPLETIONS, json.dumps(PROMPT | {"prompt": [VOCAB]}).encode()),
    (COMPLETIONS, json.dumps(PROMPT | {"prompt": [5] * (CONTEXT + 1)}).encode()),
    (COMPLETIONS, json.dumps(PROMPT | {"structured_outputs": {"regex": "("}}).encode()),
    (CHAT, json.dumps({"messages": []}).encode()),
)


@pytest.mark.parametrize("requests", sizes("LK3"))
def test_who_leaves_and_who_is_refused_leaves_nothing(watch, case, requests):
    """LK3: by turns a stream whose client leaves at a random point, before its head or after, and a refusal."""

    async def leave(connection, number):
        draw = random.Random(number)
        body = PROMPT | {"stream": True, "max_tokens": 100, "n": 1 + number % 3}
        after = draw.randint(-2, 20)
        if after == -2:
            await connection.send(COMPLETIONS, body, share=draw.random())
        elif after == -1:
            await connection.send(COMPLETIONS, body)
        else:
            pieces = (await connection.ask(COMPLETIONS, body)).pieces()
            for _ in range(after):
                await anext(pieces, None)
            await pieces.aclose()
        connection.leave()

    async def asking(connection, number):
        if number % 2:
            await leave(connection, number)
        else:
            path, body = REFUSED[number // 2 % len(REFUSED)]
            status, _ = await connection.whole(path, body)
            assert status == 400

    figures, grown = run(watch.run(asking, requests))
    assert not grown, "\n".join(grown)
    case("LK3", requests, **figures)


def test_a_long_text_leaves_nothing(watch, case):
    """What it took is a hundred times its size, in small pieces."""
    pid, text = watch.server.process.pid, "What is read here, is gone. " * 36_000
    before = holdings(pid)["server"].memory
    for _ in range(2):
        assert run(ask(watch.server.port, "/tokenize", {"prompt": text})).status == 200
    kept = holdings(pid)["server"].memory - before
    assert kept < MOST_KEPT_OF_A_TEXT
    case("LK3", 2, kept_of_a_text_in_mib=round(kept / 2**20, 1))


@pytest.mark.parametrize("engines", sizes("LK4"))
def test_engines_in_one_process_leave_nothing(t0, case, engines):
    """LK4."""

    def one():
        with LLM(str(t0), dtype="float32", progress=False, num_gpu_blocks_override=64) as llm:
            (output,) = llm.generate([[40, 41, 42]], use_tqdm=False)
        assert output.outputs[0].finish_reason

    for _ in range(2):
        one()
    gc.collect()
    before = Holding.of()
    for _ in range(engines):
        one()
    gc.collect()
    after = Holding.of()
    assert after.memory - before.memory <= MOST_OF_ENGINES
    assert (after.descriptors, after.threads) <= (before.descriptors, before.threads)
    case("LK4", engines, engines_grown_mib=round((after.memory - before.memory) / 2**20, 2))


@pytest.mark.parametrize("times", sizes("LK4s"))
def test_servers_leave_nothing(t0, tmp_path, case, times):
    """LK4: no process, nobody at the port, no file."""
    for _ in range(times):
        with Server(t0, environment={"TMPDIR": str(tmp_path)}).ready() as server:
            port, children = server.port, family(server.process.pid)
            answer = run(ask(port, CHAT, {"messages": HI, "max_tokens": 2}))
            children |= family(server.process.pid)
            assert answer.status == 200 and len(children) > 1
            server.signal(signal.SIGTERM)
            assert server.exit_code() == 0
            assert alive(children) == []
            assert port_is_free(port)
            assert list(tmp_path.iterdir()) == []
    case("LK4", times)
