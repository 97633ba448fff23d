"""One axis at a time, in the sizes of the programme: EX1 to EX4 with seeded sampling (EX10), and streams (EX11).

`tests/exactness` tries the same axes in a few sizes, on every change.
The oracle is the same engine with one request at a time, without cache and without chunks. A difference that rounding
explains is counted, and printed; more than a few are a failure.
"""

import asyncio
import random
from dataclasses import replace

import pytest

from bestiary import LLM, SamplingParams

from .support.chaos import as_fields
from .support.client import Stream, ask, send
from .support.golden import Golden
from .support.programs import difference
from .support.scene import PATIENCE

KINDS = [
    {"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9, "top_k": 50},
    {"temperature": 0.9, "min_p": 0.02, "repetition_penalty": 1.1, "presence_penalty": 0.2},
]  # fmt: skip
FULL = pytest.mark.full


class Bench:
    """A model, its oracle, and answers compared."""

    def __init__(self, model, tokens, **options):
        self.model, self.tokens = str(model), tokens
        self.options = {"dtype": "float32", "progress": False} | options
        self.golden = Golden(model, **options)
        self.compared = self.ties = 0

    def engine(self, **options):
        return LLM(self.model, **self.options | options)

    def requests(self, count, longest, seed=0):
        """Prompts of different lengths, and parameters of all kinds."""
        draw = random.Random(seed)
        for number in range(count):
            prompt = [draw.randrange(3, 500) for _ in range(draw.randint(1, longest))]
            yield (
                prompt,
                SamplingParams(max_tokens=self.tokens, ignore_eos=True, seed=number, logprobs=2, **KINDS[number % 4]),
            )

    def compare(self, output, prompt, params):
        for got, want in zip(output.outputs, self.golden.outputs(prompt, params), strict=True):
            problem = difference(got, want, whole=True, exact=False)
            self.compared += 1
            if problem == "tie":
                self.ties += 1
                print(f"a tie: {got.token_ids} and {want.token_ids}")
            elif problem:
                raise AssertionError(problem)

    def run(self, llm, requests):
        asked = [{"prompt_token_ids": prompt} for prompt, _ in requests]
        for output, (prompt, params) in zip(
            llm.generate(asked, [params for _, params in requests], use_tqdm=False), requests, strict=True
        ):
            self.compare(output, prompt, params)

    def conclude(self, case, name):
        assert self.compared
        case(name, self.compared, ties=self.ties)
        assert self.ties <= 1 + self.compared // 1000


@pytest.fixture(scope="module")
def small(t0):
    bench = Bench(t0, 12)
    yield bench
    bench.golden.close()


@pytest.fixture(scope="module")
def real():
    """SmolLM2-135M, as its package ships it."""
    bench = Bench("smollm2", 16, max_model_len=512, num_gpu_blocks_override=128)
    yield bench
    bench.golden.close()


@pytest.fixture(params=[pytest.param("small", id="T0"), pytest.param("real", id="T2")])
def bench(request):
    found = request.getfixturevalue(request.param)
    found.compared = found.ties = 0
    return found


def sizes(bench, small, real):
    return real if bench.model == "smollm2" else small


def scheduled(llm, requests, draw):
    """Requests that arrive in any order, with any number of steps in between; their outputs, in the order given."""
    waiting, outputs = list(enumerate(requests)), {}
    draw.shuffle(waiting)
    while waiting or any(not output.finished for output in outputs.values()):
        for number, (prompt, params) in [waiting.pop() for _ in range(min(len(waiting), draw.choice((0, 1, 1, 2, 8))))]:
            outputs[number] = llm._outputs.add(f"{number}", None, prompt, params, priority=draw.randrange(3))
        if llm.engine.has_unfinished_requests:
            llm._step()
    return [outputs[number] for number in range(len(requests))]


@FULL
def test_any_schedule(bench, case):
    """EX1: arrival in random order, batches of up to 32."""
    count, times = sizes(bench, (64, 50), (8, 5))
    requests = list(bench.requests(count, longest=30))
    with bench.engine(max_num_seqs=32, enable_prefix_caching=False) as llm:
        for seed in range(times):
            for output, (prompt, params) in zip(scheduled(llm, requests, random.Random(seed)), requests, strict=True):
                bench.compare(output, prompt, params)
    bench.conclude(case, "EX1")


@FULL
def test_any_chunk_size(bench, case):
    """EX2: prompts computed in pieces of every size, up to the whole."""
    longest = sizes(bench, 40, 90)
    requests = list(bench.requests(sizes(bench, 50, 4), longest, seed=1))
    for size in sizes(bench, range(1, longest + 1), (1, 7, 16, 64, 1024)):
        with bench.engine(max_num_batched_tokens=size, enable_prefix_caching=False) as llm:
            bench.run(llm, requests)
    bench.conclude(case, "EX2")


@FULL
@pytest.mark.parametrize("block_size", [1, 8, 16])
def test_a_prefix_cache_in_any_state(bench, case, block_size):
    """EX3: cold, warm, in part, evicted; the beginnings are those of a few prompts, and the cache holds few of them."""
    count = sizes(bench, 670, 24)
    heads = [prompt for prompt, _ in bench.requests(5, 30, seed=2)]
    draw, requests = random.Random(block_size), list(bench.requests(count, 6, seed=3))
    requests = [([*draw.choice(heads)[: draw.randint(0, 30)], *prompt], params) for prompt, params in requests]
    with bench.engine(block_size=block_size, num_gpu_blocks_override=128 // block_size + 2, max_num_seqs=4) as llm:
        while requests:
            several = [requests.pop() for _ in range(min(len(requests), draw.randint(1, 6)))]
            bench.run(llm, several)
        usage = llm.engine.stats().kv_cache
        assert 0 < usage.prefix_hits < usage.prefix_queries
    bench.conclude(case, "EX3")


@FULL
def test_preemption_at_any_step(bench, case):
    """EX4: all that run lose their blocks at once, at every step of their answers."""
    steps = sizes(bench, 48, 12)
    requests = [
        (prompt, replace(params, max_tokens=steps))
        for prompt, params in bench.requests(sizes(bench, 64, 4), 20, seed=4)
    ]
    with bench.engine(max_num_seqs=64, enable_prefix_caching=False) as llm:
        scheduler = llm.engine.scheduler
        for at in range(steps):
            outputs = [llm._outputs.add(f"{number}", None, *each) for number, each in enumerate(requests)]
            for step in range(10_000):
                if all(output.finished for output in outputs):
                    break
                if step == at:
                    for sequence in list(scheduler.roster.running):
                        scheduler.roster.preempt(sequence)
                llm._step()
            for output, (prompt, params) in zip(outputs, requests, strict=True):
                bench.compare(output, prompt, params)
    bench.conclude(case, "EX4")


# --- streams --------------------------------------------------------------------------------------------------------

TEXTS = ["The owl", "naïve", "中文字", "🦉🐉", "a\n\nb", " ", "<|im_start|>user\nhi<|im_end|>\n"]


def odd_requests(count):
    """Completions with stop strings, several answers, special tokens, and prompts that end in half a character."""
    draw = random.Random(5)
    half = [[ids[-1] for ids in ([200 + number], [150 + number], [10 + number])] for number in range(40)]
    for number in range(count):
        prompt = draw.choice(TEXTS) if number % 2 else draw.choice(half)
        params = SamplingParams(
            max_tokens=draw.choice((1, 5, 24)), seed=number, temperature=1.0, n=draw.choice((1, 1, 3))
        )
        more = {
            "stop": draw.choice((None, ["e", "th"], ["\n", "�"], [" a", "owl"])),
            "include_stop_str_in_output": draw.random() < 0.3, "skip_special_tokens": draw.random() < 0.5,
            "logprobs": draw.choice((None, 1)), "return_token_ids": True,
        }  # fmt: skip
        yield (
            as_fields(params) | {"prompt": prompt} | {name: value for name, value in more.items() if value is not None}
        )


async def both_ways(server, body):
    """Of one request: texts, ids and ends of the answers, as a stream and at once."""
    response = await send(server.port, "POST", "/v1/completions", body | {"stream": True})
    stream = Stream()
    async for _ in stream.follow(response):
        pass
    answer = (await ask(server.port, "/v1/completions", body)).json()["choices"]
    assert stream.terminals == stream.done == 1
    streamed = [(stream.texts[i], stream.token_ids[i], dict(stream.ends)[i]) for i in sorted(stream.texts)]
    assert len(stream.ends) == len(answer)
    return streamed, [(each["text"], each["token_ids"], each["finish_reason"]) for each in answer]


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=FULL)])
def test_a_stream_is_what_would_have_come_at_once(t0_server, case, count):
    """EX11."""

    async def work():
        for body in odd_requests(count):
            streamed, at_once = await both_ways(t0_server, body)
            assert streamed == at_once, body

    asyncio.run(asyncio.wait_for(work(), PATIENCE * 4))
    case("EX11", count)
