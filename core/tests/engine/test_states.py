"""Models whose layers keep states, through the engine: however steps are cut, everyone has the tokens it has alone."""

from types import SimpleNamespace

import pytest
import torch

from bestiary import LLM, SamplingParams
from bestiary.api import ModelRegistry
from bestiary.api.config import CacheConfig, SchedulerConfig
from bestiary.api.errors import UsageError
from bestiary.engine import recovery
from bestiary.engine.loaded_model import fewest_rows
from bestiary.engine.memory import cache_room
from bestiary.engine.plan import SampledToken, StepResult
from bestiary.nn.attention.backend import KVCacheSpec
from bestiary.nn.state import StateSpec
from bestiary.testing.logits import prompt_logits

from .stateful_models import Hybrid, Stateful, logits_of, save

GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
BEGINNING = [7 * i % 60 + 1 for i in range(40)]
PROMPTS = [
    BEGINNING,
    [*BEGINNING[:37], 5, 9],
    [3],
    [*BEGINNING[:16], 8],
    [4, 5, 6, 7] * 8,
    [*BEGINNING[:35], 2, 2, 2, 2],
]
ROW_BYTES = 2 * (32 * 4 + 8)
BLOCK_BYTES = 16 * 2 * 32 * 4
KV = KVCacheSpec(num_kv_heads=1, head_size=8, dtype=torch.float32)  # 64 bytes a token
STATE = StateSpec(shapes=((125,), (125,)), dtypes=(torch.float32, torch.float32))  # 1000 bytes a row


@pytest.fixture(scope="module", params=[Stateful, Hybrid])
def model(request, tmp_path_factory):
    ModelRegistry.register_model(request.param.__name__, request.param)
    folder = tmp_path_factory.mktemp("stateful")
    return request.param, str(folder), save(folder, request.param)


@pytest.fixture
def engine(model):
    made = []

    def make(**options):
        plain = {"kernels": "torch", "skip_tokenizer_init": True, "progress": False, "device": "cpu"}
        made.append(LLM(model[1], **plain | options))
        return made[-1]

    yield make
    for llm in made:
        llm.close()


@pytest.fixture(scope="module")
def alone(model):
    """The tokens of each of `PROMPTS`, computed by itself and whole, nothing kept in between."""
    llm = LLM(
        model[1], skip_tokenizer_init=True, progress=False, enable_prefix_caching=False, max_num_seqs=1, kernels="torch"
    )
    found = [tokens_of(llm, [prompt])[0] for prompt in PROMPTS]
    llm.close()
    assert len({tuple(each) for each in found}) == len(PROMPTS) and len({*found[0]}) > 3, "the model says too little"
    return found


def tokens_of(llm, prompts):
    answers = llm.generate([{"prompt_token_ids": ids} for ids in prompts], GREEDY, use_tqdm=False)
    return [list(answer.outputs[0].token_ids) for answer in answers]


def rows_of(llm):
    return llm.engine.scheduler.roster.kv.states


def free_rows(llm):
    """Rows that no sequence holds."""
    return len(rows_of(llm)._free) + sum(rows_of(llm)._held[row] == 1 for row in rows_of(llm)._checkpoints.values())


def test_the_model_is_what_it_says(model, engine):
    llm = engine()
    whole = prompt_logits(llm, BEGINNING)
    torch.testing.assert_close(prompt_logits(llm, BEGINNING, chunk=7), whole, atol=1e-4, rtol=1e-4)
    if model[0] is Stateful:
        torch.testing.assert_close(whole, logits_of(model[2], BEGINNING), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"enable_prefix_caching": False},
        {"max_num_batched_tokens": 7},
        {"max_num_batched_tokens": 21, "max_num_seqs": 3},
        {"num_gpu_blocks_override": 8, "max_num_batched_tokens": 30},
        {"enable_chunked_prefill": False},
        {"block_size": 4},
        {"block_size": 1, "max_num_batched_tokens": 50},
        {"kernels": "auto"},
    ],
    ids=str,
)
def test_tokens_do_not_depend_on_the_schedule(engine, alone, options):
    llm = engine(**options)
    for _ in range(2):
        assert tokens_of(llm, PROMPTS) == alone
    graphs = llm.engine.executor.runner.graphs  # where a package records steps, it records these
    assert graphs is None or (graphs.steps and not graphs.refused)
    usage = llm.engine.scheduler.stats()
    assert usage.kv_cache.used_blocks == 0 and free_rows(llm) == rows_of(llm).num_rows
    assert usage.preemptions > 0 or "num_gpu_blocks_override" not in options
    pieces = {"enable_prefix_caching", "enable_chunked_prefill"}.isdisjoint(options)
    assert (usage.kv_cache.prefix_hits > 0) == pieces, "only where prompts come in pieces has a prompt a state to keep"


@pytest.mark.parametrize("options", [{}, {"max_num_batched_tokens": 21, "max_num_seqs": 3}, {"block_size": 4}], ids=str)
def test_steps_planned_ahead_read_what_those_before_them_wrote(engine, alone, options):
    llm = engine(async_scheduling=True, **options)
    llm.engine.executor.runner.defers = True
    launch, launched = llm.engine.lanes.lanes[0].launch_ahead, []
    llm.engine.lanes.lanes[0].launch_ahead = lambda executor: launched.append(launch(executor))
    for _ in range(2):
        assert tokens_of(llm, PROMPTS) == alone
    assert sum(map(bool, launched)) > 20
    assert free_rows(llm) == rows_of(llm).num_rows


def test_a_prompt_that_came_before_begins_at_its_last_full_block(engine, alone):
    llm = engine()
    tokens_of(llm, PROMPTS[:1])
    (answer,) = llm.generate([{"prompt_token_ids": PROMPTS[0]}], GREEDY, use_tqdm=False)
    assert (answer.metrics.cached_tokens, list(answer.outputs[0].token_ids)) == (32, alone[0])
    longer = [*PROMPTS[0], *alone[0], 3]  # the next turn of a chat: 48 of 61 tokens stand at a block's end
    (answer,) = llm.generate([{"prompt_token_ids": longer}], GREEDY, use_tqdm=False)
    assert answer.metrics.cached_tokens == 48
    llm.engine.scheduler.clear_prefix_cache()
    (again,) = llm.generate([{"prompt_token_ids": longer}], GREEDY, use_tqdm=False)
    assert again.metrics.cached_tokens == 0
    assert again.outputs[0].token_ids == answer.outputs[0].token_ids


@pytest.mark.parametrize("rows", [2, 4, 7])
def test_few_rows_make_requests_wait(model, engine, alone, rows, caplog):
    caching = 128 // 16 * BLOCK_BYTES if model[0] is Hybrid else 0
    llm = engine(kv_cache_memory_bytes=caching + rows * ROW_BYTES, enforce_eager=True, max_num_seqs=6)
    assert rows_of(llm).num_rows == rows
    assert f"max_num_seqs={rows // 2} instead of 6" in caplog.text
    for _ in range(2):
        assert tokens_of(llm, PROMPTS) == alone


class Ranks:
    """A team whose other ranks have these numbers of rows."""

    def __init__(self, others):
        self.others, self.calls = others, 0

    def smallest(self, value):
        self.calls += 1
        most = max(self.others)
        others = [-each for each in self.others] if self.calls == 1 else [each or most for each in self.others]
        return min(value, *others)


@pytest.mark.parametrize(
    ("own", "others", "fewest"), [(0, [0], 0), (0, [7, 5], 5), (6, [0, 9], 6), (6, [0, 5], 5), (4, [4], 4)]
)
def test_ranks_without_such_layers_want_no_rows_of_their_own(own, others, fewest):
    assert fewest_rows(Ranks([*others, 0] if own else others), own) == fewest


@pytest.mark.parametrize(
    ("specs", "options", "found"),
    [
        ([], {"memory_bytes": 2**30}, (32, 24)),
        ([], {"memory_bytes": 2**30, "enable_prefix_caching": False}, (32, 16)),
        ([], {"memory_bytes": 10_000}, (32, 10)),
        ([KV], {"memory_bytes": 60_000}, (32, 24)),
        ([KV], {"memory_bytes": 40_000}, (19, 20)),
        ([KV], {"memory_bytes": 4 * 1024 + 2500}, (4, 2)),
        ([KV], {"memory_bytes": 40_000, "num_blocks": 30}, (30, 9)),
        ([KV], {}, (32, 24)),
    ],
)
def test_rows_and_blocks_share_the_memory(specs, options, found):
    room = cache_room(specs, [STATE], config(**options), free=2**34)
    assert (room.num_blocks, room.num_state_rows) == found


@pytest.mark.parametrize(("specs", "memory", "needed"), [([], 1999, 2000), ([KV], 6095, 6096)])
def test_memory_without_room_for_one_sequence_is_refused(specs, memory, needed):
    with pytest.raises(UsageError, match="no memory for the states of layers") as raised:
        cache_room(specs, [STATE], config(memory_bytes=memory))
    assert raised.value.limit == f"at least {needed}, with the KV cache"


def config(**options):
    return SimpleNamespace(
        cache_config=CacheConfig(block_size=16, **options),
        scheduler_config=SchedulerConfig(max_num_seqs=8),
        model_config=SimpleNamespace(max_model_len=64),
        device_config=SimpleNamespace(device="cpu"),
    )


def test_a_step_that_failed_or_must_wait_is_run_again_from_the_same_state(engine, alone, monkeypatch):
    """Every third step fails after it has written everything; every fourth result asks for its tokens once more."""
    llm = engine(max_num_batched_tokens=21)
    runner, calls = llm.engine.executor.runner, [0, 0]
    compute, draw = runner.stage.compute, runner.draw

    def failing(*arguments, **more):
        made = compute(*arguments, **more)
        calls[0] += 1
        if calls[0] % 3 == 0:
            raise MemoryError
        return made

    def waiting(plan, batch, logits):
        result = draw(plan, batch, logits)
        calls[1] += 1
        if calls[1] % 4:
            return result
        return StepResult(plan.step, {name: SampledToken(-1, instead="wait") for name in result.sampled})

    monkeypatch.setattr(runner.stage, "compute", failing)
    monkeypatch.setattr(runner, "draw", waiting)
    found = {str(index): [] for index in range(len(PROMPTS))}
    for index, ids in enumerate(PROMPTS):
        llm.engine.add_request(str(index), ids, GREEDY)
    while llm.engine.has_unfinished_requests:
        for update in recovery.step(llm.engine):
            assert update.error is None
            if update.token_id is not None:
                found[update.request_id].append(update.token_id)
    assert list(found.values()) == alone
    assert min(calls) > 40


def test_ends_from_outside_give_rows_back(engine, alone):
    llm = engine(max_num_batched_tokens=30)
    for index, ids in enumerate(PROMPTS):
        llm.engine.add_request(str(index), ids, GREEDY)
    for _ in range(6):
        llm.engine.step()
    for index in (0, 2, 4):
        llm.engine.abort(str(index))
    free = free_rows(llm)
    while llm.engine.has_unfinished_requests:
        llm.engine.step()
    assert free < free_rows(llm) == rows_of(llm).num_rows
    assert tokens_of(llm, PROMPTS) == alone
