"""Many requests at once: none is lost, none ends twice, none has other tokens than alone (LD1–LD5)."""

import asyncio
import json
import os
import signal
import time
from collections import Counter

import pytest

from bestiary import LLM, SamplingParams

from .support.baseline import Holding
from .support.client import Stream, ask, send
from .support.kept import Kept
from .support.server import Server
from .support.sizes import sizes
from .support.traffic import COMPLETIONS, Tally, Traffic, learn, order

CLIENTS = 64
TAIL = 20
"""The slowest of a hundred requests takes at most so many times what the median does. Asked for where there are enough
of them: with few, the first that come together are all in the tail."""
BURST, QUEUE, RUNNING = 500, 256, 64
OPTIONS = ("--max-queue", f"{QUEUE}", "--max-num-seqs", f"{RUNNING}", "--num-gpu-blocks-override", "4096")
SHORT = {"max_tokens": 8, "ignore_eos": True, "temperature": 0}
BASELINE_SECONDS = 5.0
REAL = {"dtype": "float32", "max_model_len": 512, "num_gpu_blocks_override": 256, "progress": False}


def run(work, seconds=14_400):
    return asyncio.run(asyncio.wait_for(work, seconds))


@pytest.fixture(scope="module")
def server(t0):
    with Server(t0, *OPTIONS).ready() as made:
        yield made


@pytest.mark.parametrize("requests", sizes("LD1"))
def test_a_mixed_load(server, golden, case, requests):
    """LD1."""
    learn(golden, (order(number) for number in range(1000)))
    traffic = Traffic(server.port, golden)
    started = time.monotonic()
    run(traffic.run((order(number) for number in range(requests)), CLIENTS))
    tally, elapsed = traffic.tally, time.monotonic() - started
    run(server.until_quiet())
    assert not tally.wrong, "\n".join(tally.wrong[:5])
    assert tally.statuses == {200: requests} and sum(tally.ended.values()) == requests
    assert len(tally.ended) == 5, "every kind"
    if requests >= 10_000:
        assert tally.quantile(0.99) < TAIL * tally.quantile(0.5)
    case("LD1", requests, **tally.figures(elapsed))


@pytest.mark.parametrize("requests", sizes("LD2"))
def test_conversations_with_a_real_model(case, requests):
    """LD2: what it says alone, it says to eight at once."""
    questions = [
        f"Tell me about {what}." for what in ("owls", "rain", "bread", "the sea", "clocks", "maps", "tea", "ice")
    ]
    with LLM("smollm2", max_num_seqs=1, enable_prefix_caching=False, **REAL) as alone:
        asked = [[{"role": "user", "content": question}] for question in questions]
        answers = alone.chat(asked, SamplingParams(temperature=0, max_tokens=64), use_tqdm=False)
    wants = {question: answer.outputs[0].text for question, answer in zip(questions, answers, strict=True)}
    tally = Tally()

    async def client(connection, numbers):
        for number in numbers:
            question = questions[number % len(questions)]
            body = {"messages": [{"role": "user", "content": question}], "max_tokens": 64, "temperature": 0}
            began = time.monotonic()
            status, data = await connection.whole("/v1/chat/completions", body)
            tally.seconds.append(time.monotonic() - began)
            tally.statuses[status] += 1
            found = json.loads(data)["choices"][0]["message"]["content"]
            tally.tokens += json.loads(data)["usage"]["completion_tokens"]
            if found != wants[question]:
                tally.wrong.append(f"{question}: {found!r} instead of {wants[question]!r}")
            tally.ended["chat"] += 1
        connection.leave()

    async def work(server):
        numbers = iter(range(requests))
        await asyncio.gather(*(client(Kept(server.port), numbers) for _ in range(8)))

    with Server("smollm2", "--max-model-len", "512", "--num-gpu-blocks-override", "512").ready() as server:
        started = time.monotonic()
        run(work(server))
        elapsed = time.monotonic() - started
    assert not tally.wrong, "\n".join(tally.wrong[:5])
    assert tally.statuses == {200: requests}
    case("LD2", requests, **tally.figures(elapsed))


@pytest.mark.parametrize("times", sizes("LD3"))
def test_a_burst_that_there_is_no_room_for(server, golden, case, times):
    """LD3: exactly what fits is taken, also where nothing moves meanwhile; the rest is told at once to come again."""
    params = SamplingParams(**SHORT)
    prompts = [[40 + number % 8, 41, 42] for number in range(BURST)]
    shed_seconds = []

    async def one(prompt, answered):
        began = time.monotonic()
        answer = await ask(server.port, COMPLETIONS, SHORT | {"prompt": prompt, "return_token_ids": True})
        if answer.status == 503:
            shed_seconds.append(time.monotonic() - began)
            assert answer.json()["error"]["code"] == "QUEUE_FULL" and int(answer.headers["retry-after"]) > 0
        else:
            assert answer.json()["choices"][0]["token_ids"] == golden.tokens(prompt, params)
        answered[answer.status] += 1

    async def burst():
        answered = Counter()
        os.kill(server.engine_pid, signal.SIGSTOP)
        try:
            tasks = [asyncio.create_task(one(prompt, answered)) for prompt in prompts]
            while answered[503] < BURST - QUEUE - RUNNING:
                await asyncio.sleep(0.01)
                assert answered[200] == 0
        finally:
            os.kill(server.engine_pid, signal.SIGCONT)
        await asyncio.gather(*tasks)
        assert answered == {200: QUEUE + RUNNING, 503: BURST - QUEUE - RUNNING}
        await server.until_quiet()

    for each in prompts[:8]:
        golden.tokens(each, params)
    before = run(server.stats())["requests"]["shed"]
    for _ in range(times):
        run(burst())
    assert run(server.stats())["requests"]["shed"] - before == times * (BURST - QUEUE - RUNNING)
    assert server.process.poll() is None
    case("LD3", times * BURST, shed=len(shed_seconds), seconds_to_the_last_refusal=round(max(shed_seconds), 3))


@pytest.mark.parametrize("clients", sizes("LD4"))
def test_clients_that_leave_and_clients_that_dawdle(server, case, clients):
    """LD4: what they asked for is given up, and what they held is free again soon after."""
    slow = clients // 5
    body = SHORT | {"prompt": [40, 41, 42], "stream": True, "max_tokens": 60}

    async def leave(number):
        connection = Kept(server.port)
        await connection.send(COMPLETIONS, body, share=(0.0, 0.3, 1.0)[number % 3])
        connection.leave()

    async def dawdle(over):
        """One of those who read an event, and no more until the others are through."""
        response = await send(server.port, "POST", COMPLETIONS, body | {"logprobs": 5, "n": 4})
        while response.status == 503:
            await response.read()
            await asyncio.sleep(0.1)
            response = await send(server.port, "POST", COMPLETIONS, body | {"logprobs": 5, "n": 4})
        stream = Stream()
        following = stream.follow(response)
        await anext(following)
        await over.wait()
        async for _ in following:
            pass
        return stream

    async def work():
        before, over = Holding.of(server.process.pid), asyncio.Event()
        dawdling = [asyncio.create_task(dawdle(over)) for _ in range(slow)]
        for start in range(0, clients, CLIENTS):
            await asyncio.gather(*(leave(number) for number in range(start, min(start + CLIENTS, clients))))
        over.set()
        streams = await asyncio.gather(*dawdling)
        ended = time.monotonic()
        await server.until_quiet()
        while Holding.of(server.process.pid).descriptors > before.descriptors:
            await asyncio.sleep(0.02)
        return streams, time.monotonic() - ended

    streams, seconds = run(work(), 3600)
    assert [(each.terminals, sorted(each.ends)) for each in streams] == [
        (1, [(index, "length") for index in range(4)]) for _ in range(slow)
    ]
    if clients >= 1000:
        assert seconds < BASELINE_SECONDS
    case("LD4", clients + slow, seconds_to_the_baseline=round(seconds, 2))


@pytest.mark.parametrize("seconds", sizes("LD5"))
def test_twice_as_much_as_there_is_room_for(server, golden, case, seconds):
    """LD5: who is refused costs little: what is answered stays near what was answered without the others."""
    learn(golden, (order(number) for number in range(1000)))

    async def peak():
        traffic, started = Traffic(server.port, golden), time.monotonic()
        await traffic.run((order(number) for number in range(5000)), CLIENTS)
        return sum(traffic.tally.ended.values()) / (time.monotonic() - started)

    async def overload(rate):
        traffic, started, tasks = Traffic(server.port, golden), time.monotonic(), set()

        async def one(number):
            connection = Kept(server.port)
            await traffic.serve(connection, order(number))
            connection.leave()

        number = 0
        while (now := time.monotonic() - started) < seconds:
            while number < now * 2 * rate:
                task = asyncio.create_task(one(number))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                number += 1
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
        return traffic.tally, number, time.monotonic() - started

    best = run(peak())
    tally, asked, elapsed = run(overload(best))
    assert not tally.wrong, "\n".join(tally.wrong[:5])
    assert sum(tally.statuses.values()) == asked and set(tally.statuses) == {200, 503}
    goodput = sum(tally.ended.values()) / elapsed
    assert goodput >= 0.8 * best
    case("LD5", asked, peak_per_second=round(best, 1), **tally.figures(elapsed))
