"""Tokens do not depend on how they were scheduled: batch, arrival, chunks, prefix cache, preemption.

The oracle is the same engine with one request at a time. A difference is allowed in one case alone: where the two
likeliest tokens were closer than 1e-4 (`same`), and never in deterministic mode, where log-probabilities agree bitwise.
"""

import random

import pytest
import torch

from bestiary import LLM, SamplingParams

TIE = 1e-4
KINDS = ["greedy", "random", "shaped"]


def prompt(seed, length):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 101, (length,), generator=generator).tolist()


def params(kind, tokens, seed=0):
    """Greedy, plain, or heavily shaped sampling, all seeded."""
    shaped = {
        "greedy": {"temperature": 0.0},
        "random": {"temperature": 1.0},
        "shaped": {
            "temperature": 0.8, "top_p": 0.9, "top_k": 40, "repetition_penalty": 1.1, "presence_penalty": 0.3,
            "frequency_penalty": 0.2, "logit_bias": {5: 1.5}, "bad_token_ids": [7],
        },
    }[kind]  # fmt: skip
    return SamplingParams(max_tokens=tokens, ignore_eos=True, seed=seed, logprobs=2, **shaped)


def same(got, want, what=""):
    """Equal tokens, or different from a position where the choice was a tie."""
    for at, (a, b) in enumerate(zip(got.token_ids, want.token_ids, strict=True)):
        if a != b:
            near = want.logprobs[at]
            gap = abs(near[b].logprob - got.logprobs[at][a].logprob)
            assert gap < TIE, f"{what}: token {at} is {a}, alone it was {b}, and they are {gap} apart"
            print(f"tie at {at}: {a} or {b}, {gap} apart")
            return
    for a, b in zip(got.logprobs, want.logprobs, strict=True):
        for token in set(a) & set(b):
            assert abs(a[token].logprob - b[token].logprob) < TIE, what


def run(llm, requests):
    prompts = [{"prompt_token_ids": ids} for ids, _ in requests]
    outputs = llm.generate(prompts, [each for _, each in requests], use_tqdm=False)
    return [output.outputs[0] for output in outputs]


def requests(count, tokens=12, longest=40, seed=0):
    chosen = random.Random(seed)
    return [
        (prompt(seed * 100 + i, chosen.randint(1, longest)), params(KINDS[i % 3], tokens, seed=i)) for i in range(count)
    ]


@pytest.mark.parametrize("batch", [2, 5, 32])
def test_batched_equals_alone(engine, alone, batch):
    work = requests(batch, seed=batch)
    for got, (ids, each) in zip(run(engine(enable_prefix_caching=False), work), work, strict=True):
        same(got, alone(ids, each))


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 8, 13, 39])
def test_chunked_equals_whole(engine, alone, budget):
    work = requests(4, seed=budget)
    llm = engine(enable_prefix_caching=False, max_num_batched_tokens=budget)
    for got, (ids, each) in zip(run(llm, work), work, strict=True):
        same(got, alone(ids, each))


@pytest.mark.parametrize("block_size", [1, 8, 16])
def test_cached_equals_uncached(engine, alone, block_size):
    llm = engine(block_size=block_size, num_gpu_blocks_override=max(20, 320 // block_size))
    head = prompt(1, 33)
    for length in (33, 16, 24, 33, 17, 8, 33):
        work = [(head[:length] + prompt(length, 5), params(kind, 10, seed=3)) for kind in KINDS]
        work.append((head[:length], params("greedy", 10)))
        for got, (ids, each) in zip(run(llm, work), work, strict=True):
            same(got, alone(ids, each))
    assert llm.engine.stats().kv_cache.prefix_hits > 0


@pytest.mark.parametrize("spare", [0, 2, 5])
def test_preempted_equals_not(engine, alone, spare):
    work = requests(6, tokens=30, longest=20, seed=spare)
    llm = engine(enable_prefix_caching=False, block_size=4, num_gpu_blocks_override=13 + spare, max_num_seqs=6)
    before = llm.engine.stats().preemptions
    for got, (ids, each) in zip(run(llm, work), work, strict=True):
        same(got, alone(ids, each))
    assert llm.engine.stats().preemptions > before


@pytest.mark.parametrize("n", [2, 5])
def test_answers_of_one_request_equal_single_requests(engine, alone, n):
    from dataclasses import replace

    ids, each = prompt(4, 20), params("random", 10, seed=99)
    (output,) = engine().generate([{"prompt_token_ids": ids}], replace(each, n=n), use_tqdm=False)
    for index, got in enumerate(output.outputs):
        same(got, alone(ids, each.child(index)))
    assert len({tuple(got.token_ids) for got in output.outputs}) > 1


def test_deterministic_mode_is_bitwise(engine):
    """The same log-probabilities, bit for bit: alone, batched, chunked, cached and preempted."""
    work = [(prompt(i, 18 + i), params(KINDS[i % 3], 8, seed=i)) for i in range(5)]
    plain = engine(deterministic=True, enable_prefix_caching=False, max_num_seqs=1)
    want = [(got.token_ids, got.logprobs) for got in run(plain, work)]
    for options in (
        {"enable_prefix_caching": False},
        {"enable_prefix_caching": False, "max_num_batched_tokens": 5},
        {"block_size": 8},
        {"block_size": 4, "num_gpu_blocks_override": 12, "enable_prefix_caching": False},
    ):
        llm = engine(deterministic=True, **options)
        for _ in range(2):
            assert [(got.token_ids, got.logprobs) for got in run(llm, work)] == want, options


def test_two_engines_do_not_change_each_other(checkpoint, engine):
    """Which version of an op runs is each engine's own: one that is not deterministic leaves another bitwise alone."""
    work = [(prompt(i, 18), params("random", 6, seed=i)) for i in range(3)]
    first = engine(deterministic=True, block_size=8)
    want = [(got.token_ids, got.logprobs) for got in run(first, work)]
    second = LLM(checkpoint, dtype="float32", skip_tokenizer_init=True, progress=False)
    assert (first.engine.ops["linear"], second.engine.ops["linear"]) == ("fixed_tile", "by_shape")
    run(second, work)
    first.engine.scheduler.clear_prefix_cache()
    assert [(got.token_ids, got.logprobs) for got in run(first, work[:1])] == want[:1]


def test_prompt_logprobs_do_not_depend_on_chunks_or_the_cache(engine):
    ids, each = prompt(8, 25), SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=2, ignore_eos=True)
    whole = engine(enable_prefix_caching=False, max_num_seqs=1)
    (want,) = whole.generate([{"prompt_token_ids": ids}], each, use_tqdm=False)
    assert want.prompt_logprobs[0] is None
    assert len(want.prompt_logprobs) == len(ids)
    llm = engine(block_size=4, num_gpu_blocks_override=40, max_num_batched_tokens=7)
    for _ in range(2):
        (got,) = llm.generate([{"prompt_token_ids": ids}], each, use_tqdm=False)
        for token, a, b in zip(ids[1:], got.prompt_logprobs[1:], want.prompt_logprobs[1:], strict=True):
            assert abs(a[token].logprob - b[token].logprob) < TIE
