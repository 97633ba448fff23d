"""Decode steps that ranks record together: the same ones, in the same order, agreed upon, and let go before they part.

The recorder here keeps a step's code where CUDA's keeps a graph; collectives are real ones.
"""

from types import SimpleNamespace

import pytest
import torch
import transformers

from bestiary.api.errors import EngineError
from bestiary.api.sampling import SamplingParams
from bestiary.engine.build import EngineBuilder
from bestiary.engine.decode_input import DecodeInput
from bestiary.engine.graphs import StepGraphs
from bestiary.engine.parallel.executor import RankExecutor
from bestiary.engine.plan import NewRequest, ScheduledItem, StepPlan
from bestiary.nn.cuda.graphs import CudaGraphs
from bestiary.nn.graphs import NotRecordable, Together
from bestiary.nn.parallel import get_tp_group
from bestiary.testing.ranks import Ranks

PROMPTS = [[5, 9, 3], [61, 12, 12, 90, 33], [17]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.7, max_tokens=6, ignore_eos=True)


class Recorder:
    """As `CudaGraphs`: a run before, a run that is recorded, which here computes nothing new, and runs after it."""

    name = "together"
    recorded = True

    def __init__(self):
        self.events = []

    @staticmethod
    def padded(rows):
        return 4

    def record(self, step):
        raise AssertionError("ranks record together")

    def record_together(self, step, agreed):
        self.events.append(f"run before {step()[0].shape[0]}")
        self.events.append("recorded" if self.recorded else "not recorded")
        if not agreed(self.recorded):
            self.events.append("refused")
            raise NotRecordable("another rank cannot")

        def again():
            self.events.append("run again")
            return step()

        return again(), again


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=211, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def recordable(monkeypatch):
    """The backend of these tests may be recorded, so that it does not look at the host's numbers."""
    from bestiary.engine.decode_input import FixedMetadata

    def seq_lens_host(self):
        return tuple(self.seq_lens.tolist())

    monkeypatch.setattr(FixedMetadata, "seq_lens_host", property(seq_lens_host, lambda self, value: None))
    monkeypatch.setattr(
        FixedMetadata, "max_seq_len", property(lambda self: int(self.seq_lens.max()), lambda self, value: None)
    )


def plan(number, ends, whole=False, new=()):
    spans = [(0, end) if whole else (end - 1, end) for end in ends]
    items = [
        ScheduledItem(str(at), start, end - start, (2 * at, 2 * at + 1), samples=True)
        for at, (start, end) in enumerate(spans)
    ]
    return StepPlan(number, tuple(items), tuple(new))


def tokens(ranks, sampling, steps=4):
    lengths = [len(ids) for ids in PROMPTS]
    new = [NewRequest(str(at), tuple(ids), sampling, seed=at) for at, ids in enumerate(PROMPTS)]
    drawn = [ranks.execute(plan(0, lengths, whole=True, new=new)).sampled]
    for more in range(1, steps):
        drawn.append(ranks.execute(plan(more, [length + more for length in lengths])).sampled)
    return [[each[str(at)].token_id for each in drawn] for at in range(len(PROMPTS))]


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_recorded_steps_give_the_same_tokens(checkpoint, recordable, sampling):
    with Ranks(checkpoint) as alone:
        wanted = tokens(alone, sampling)
    with Ranks(checkpoint, tensor_parallel_size=2, recorder=Recorder) as ranks:
        assert tokens(ranks, sampling) == wanted
        events = [runner.graphs.recorder.events for runner in ranks.runners]
        assert events[0] == events[1] == ["run before 4", "recorded", "run again", "run again", "run again"]
        assert [list(runner.graphs.steps) for runner in ranks.runners] == [[(4, False)]] * 2


def test_all_logits_after_a_recorded_step(checkpoint, recordable):
    """Of the rows that are somebody's: what a step without a recording gives."""
    with Ranks(checkpoint) as alone, Ranks(checkpoint, tensor_parallel_size=2, recorder=Recorder) as ranks:
        found = []
        for each in (alone, ranks):
            tokens(each, GREEDY, steps=3)
            found.append(each.logits(plan(3, [len(ids) + 3 for ids in PROMPTS])))
        assert found[0].shape == (3, 211)
        torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=0)


def test_steps_recorded_at_the_start(checkpoint, recordable):
    with Ranks(checkpoint, tensor_parallel_size=2, recorder=Recorder, max_num_seqs=3) as ranks:
        assert ranks.together(lambda runner, _: runner.record_steps()) == [1, 1]
        tokens(ranks, GREEDY, steps=2)
        assert ranks.runners[0].graphs.recorder.events == ["run before 4", "recorded", "run again", "run again"]


def test_a_prompt_is_tried_before_any_comes(checkpoint, recordable, monkeypatch):
    """As long as prompts may be in one step, and where nobody's keys and values are."""
    with Ranks(checkpoint, tensor_parallel_size=2, recorder=Recorder, max_num_seqs=3) as ranks:
        runner = ranks.runners[0]
        tried, compute = [], runner.stage.compute

        def noted(batch, *given, **options):
            tried.append(len(batch.input_ids))
            return compute(batch, *given, **options)

        monkeypatch.setattr(runner.stage, "compute", noted)
        ranks.together(lambda runner, _: runner.record_steps())
        assert tried == [64]
        for cache in runner.kv_caches.values():
            assert cache[-1].any()
            assert not cache[:-1].any()


def test_a_prompt_that_does_not_fit_is_an_error_before_any_comes(checkpoint, recordable, monkeypatch):
    def too_large(*given, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with Ranks(checkpoint, tensor_parallel_size=2, recorder=Recorder, max_num_seqs=3) as ranks:
        for runner in ranks.runners:
            monkeypatch.setattr(runner.stage, "compute", too_large)
        with pytest.raises(EngineError, match="max_num_batched_tokens"):
            ranks.runners[0].record_steps()


def test_where_one_rank_cannot_none_does(checkpoint, recordable, caplog):
    """And nobody waits for a collective that another does not come to."""
    with Ranks(checkpoint) as alone:
        wanted = tokens(alone, GREEDY)
    with Ranks(checkpoint, tensor_parallel_size=2, recorder=Recorder) as ranks:
        ranks.runners[1].graphs.recorder.recorded = False
        assert tokens(ranks, GREEDY) == wanted
        events = [runner.graphs.recorder.events for runner in ranks.runners]
        assert events == [["run before 4", "recorded", "refused"], ["run before 4", "not recorded", "refused"]]
        assert [runner.graphs.refused for runner in ranks.runners] == [{False}] * 2
        assert not any(runner.graphs.steps for runner in ranks.runners)
    assert "run op by op: another rank cannot" in caplog.text


def test_recorded_steps_go_before_the_connections():
    order = []
    team = SimpleNamespace(
        parallel=SimpleNamespace(enable_eplb=False), close=lambda: order.append("connections")
    )  # fmt: skip
    runner = SimpleNamespace(
        close=lambda: order.append("runner"), graphs=SimpleNamespace(forget=lambda: order.append("steps"))
    )
    RankExecutor(runner, team).shutdown()
    assert order == ["runner", "steps", "connections"]


def test_a_recorder_of_one_process_is_not_taken_for_one_of_several():
    class Alone:
        name = "alone"

        def record(self, step):
            return step(), step

    graphs = StepGraphs(Alone(), DecodeInput(1, 4, 16), lambda value: value)
    with pytest.raises(EngineError, match="one process"):
        graphs._recorded(lambda: (torch.zeros(1),))
    assert issubclass(CudaGraphs, Together) and not issubclass(Alone, Together)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"tensor_parallel_size": 2}, "cuda_graphs: for CUDA"),
     ({"pipeline_parallel_size": 2}, "the stages of a pipeline wait for each other on the host"),
     ({"enforce_eager": True}, "enforce_eager")],
    ids=["gloo", "pipeline", "eager"],
)  # fmt: skip
def test_why_nothing_is_recorded(checkpoint, options, why):
    from bestiary.engine.arguments import EngineArgs
    from bestiary.engine.binding import bind_attention
    from bestiary.engine.loader.load import build_model

    args = EngineArgs.make(str(checkpoint), {"kernels": "torch", "device": "cpu", "progress": False, **options})
    builder = EngineBuilder(args, together=False)
    model_class, config = builder.configure()
    model = build_model(model_class, config)
    bind_attention(model, config, builder.hooks.all("attention_backends"))
    assert builder.recording(model, config) == (None, why)


@pytest.mark.gpu
def test_collectives_are_captured():
    """Of a group of one rank over NCCL: what is captured is what is computed, on whatever lies there then."""
    from bestiary.nn.parallel import use_groups
    from bestiary.nn.parallel.distributed import TorchGroup, dist

    group = TorchGroup(0, 1)
    group.connect(dist.HashStore(), device="cuda", address="127.0.0.1", timeout=60)
    x = torch.ones(4, 8, device="cuda")
    recorder = CudaGraphs()

    def step():
        return (get_tp_group().all_gather(get_tp_group().all_reduce(x * 2)),)

    with use_groups(tensor=group):
        (found,), again = recorder.record_together(step, lambda recorded: recorded)
        assert float(found.sum()) == 64
        x.fill_(3)
        assert float(again()[0].sum()) == 192
        with pytest.raises(NotRecordable, match="another rank"):
            recorder.record_together(step, lambda recorded: False)
    del again, recorder
    group.close()


@pytest.mark.gpu
def test_a_model_on_two_gpus_records_its_steps(checkpoint):
    from bestiary import LLM

    if torch.cuda.device_count() < 2:
        pytest.skip("for two GPUs")
    found = []
    for eager in (True, False):
        with LLM(
            str(checkpoint), tensor_parallel_size=2, device="cuda", enforce_eager=eager, skip_tokenizer_init=True,
            progress=False, dtype="bfloat16", num_gpu_blocks_override=64,
        ) as llm:  # fmt: skip
            outputs = llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], GREEDY, use_tqdm=False)
            found.append([output.outputs[0].token_ids for output in outputs])
            graphs = llm.engine.executor.runner.graphs
            assert (graphs is None) == eager
            assert eager or graphs.steps
    assert found[0] == found[1]


ASKED = [
    {"temperature": 0.0},
    {"temperature": 0.9, "seed": 3, "top_k": 9},
    {"temperature": 0.0, "repetition_penalty": 1.3, "logprobs": 2},
    {"temperature": 0.8, "seed": 4, "min_tokens": 5, "stop_token_ids": [*range(0, 211, 2)]},
    {"temperature": 0.0, "prompt_logprobs": 1},
]


@pytest.mark.gpu
def test_two_gpus_are_given_the_next_step_before_they_have_told_their_tokens(checkpoint):
    """Where best tokens are all that is wanted, and where logits are."""
    from bestiary import LLM

    if torch.cuda.device_count() < 2:
        pytest.skip("for two GPUs")
    found = {False: [], True: []}
    for ahead, answers in found.items():
        with LLM(
            str(checkpoint), tensor_parallel_size=2, device="cuda", skip_tokenizer_init=True, progress=False,
            dtype="float32", num_gpu_blocks_override=64, async_scheduling=None if ahead else False,
        ) as llm:  # fmt: skip
            lane, launched = llm.engine.lanes.lanes[0], []
            launch = lane.launch_ahead
            lane.launch_ahead = lambda executor, launch=launch, launched=launched: launched.append(launch(executor))
            for count in (1, len(ASKED)):
                asked = [SamplingParams(**{"max_tokens": 12, **each}) for each in ASKED[:count]]
                prompts = [{"prompt_token_ids": PROMPTS[at % len(PROMPTS)]} for at in range(count)]
                outputs = [each.outputs[0] for each in llm.generate(prompts, asked, use_tqdm=False)]
                answers += [(each.token_ids, each.finish_reason) for each in outputs]
                steps = [step for each in outputs for step in each.logprobs or ()]
                answers += [{token: one.rank for token, one in step.items()} for step in steps]
            assert (sum(map(bool, launched)) > len(launched) / 2) == ahead
    assert found[False] == found[True]
