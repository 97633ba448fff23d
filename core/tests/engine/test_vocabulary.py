"""Best tokens of a vocabulary that ranks divide: the tokens of one process, and no logits that travel."""

import math
from dataclasses import replace

import pytest
import torch
import transformers

from bestiary.api.sampling import SamplingParams
from bestiary.engine import drawing, vocabulary
from bestiary.engine.plan import NewRequest, ScheduledItem, StepPlan
from bestiary.engine.vocabulary import joined
from bestiary.nn import LogitsProcessor, ParallelLMHead
from bestiary.nn.logits import LocalLogits, local_logits
from bestiary.nn.parallel import Group, use_groups
from bestiary.nn.parallel.distributed import TorchGroup
from bestiary.nn.placement import place
from bestiary.testing.ranks import Ranks

VOCABULARY = 211
PROMPTS = [[5, 9, 3], [61, 12, 12, 90, 33], [17]]
GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, eos_token_id=2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def gathered(monkeypatch):
    """The widths of what ranks join by their last dimension."""
    widths, plain = [], TorchGroup.all_gather

    def all_gather(self, tensor, dim=-1):
        widths.append(tensor.shape[-1])
        return plain(self, tensor, dim)

    monkeypatch.setattr(TorchGroup, "all_gather", all_gather)
    return widths


def step(number, ends, count, new=()):
    items = [
        ScheduledItem(str(at), end - (count or end), count or end, (2 * at, 2 * at + 1), samples=True)
        for at, end in enumerate(ends)
    ]
    return StepPlan(number, tuple(items), tuple(new))


def tokens(ranks, sampling, steps=3):
    new = [NewRequest(str(at), tuple(ids), sampling, seed=at) for at, ids in enumerate(PROMPTS)]
    drawn = [ranks.execute(step(0, [len(ids) for ids in PROMPTS], None, new)).sampled]
    for more in range(1, steps):
        drawn.append(ranks.execute(step(more, [len(ids) + more for ids in PROMPTS], 1)).sampled)
    return [[each[str(at)].token_id for each in drawn] for at in range(len(PROMPTS))]


@pytest.mark.parametrize("deterministic", [False, True])
def test_greedy_tokens_are_those_of_one_process(checkpoint, gathered, deterministic):
    with Ranks(checkpoint, deterministic=deterministic) as alone:
        wanted = tokens(alone, GREEDY)
    with Ranks(checkpoint, tensor_parallel_size=2, deterministic=deterministic) as ranks:
        assert tokens(ranks, GREEDY) == wanted
        assert max(gathered) == len(PROMPTS)  # of a pair for each row; and once whether the model is fit for it
        assert len(gathered) == 2 * (3 + 1)


FREE = SamplingParams(temperature=0.9, max_tokens=4, ignore_eos=True)


def test_draws_from_everything_are_those_of_one_process(checkpoint, gathered, monkeypatch):
    """As on a GPU, where a draw is the largest of scores that each rank has for its own columns."""
    for module in (drawing, vocabulary):
        monkeypatch.setattr(module, "on_device", lambda tensor: True)
    with Ranks(checkpoint) as alone:
        wanted, likeliest = tokens(alone, FREE), tokens(alone, GREEDY)
    with Ranks(checkpoint, tensor_parallel_size=2) as ranks:
        assert tokens(ranks, FREE) == wanted != likeliest
        assert max(gathered) == len(PROMPTS)
        cut = replace(FREE, top_p=0.5)
        assert tokens(ranks, cut) != wanted
        assert max(gathered) > VOCABULARY // 2


@pytest.mark.parametrize(
    "sampling",
    [SamplingParams(temperature=0.0, logprobs=1), SamplingParams(temperature=0.0, logit_bias={7: 3.0}),
     SamplingParams(temperature=0.7, top_k=5)],
    ids=["logprobs", "bias", "drawn"],
)  # fmt: skip
def test_who_wants_more_gets_all_logits(checkpoint, gathered, sampling):
    with Ranks(checkpoint) as alone:
        wanted = tokens(alone, sampling)
    with Ranks(checkpoint, tensor_parallel_size=2) as ranks:
        assert tokens(ranks, sampling) == wanted
    assert min(gathered) > VOCABULARY // 2


def changing(make):
    def compute_logits(self, hidden_states):
        return make(self.logits_processor(self.lm_head, hidden_states))

    return compute_logits


def banned(logits):
    logits[:, 3] = -math.inf  # on rank 1 another token than meant
    return logits


def beyond(logits):
    logits[:, 200] = -math.inf  # ranks have fewer columns
    return logits


@pytest.mark.parametrize("make", [banned, beyond, lambda logits: logits * 1.0], ids=["in place", "beyond", "a copy"])
def test_models_that_change_their_logits_are_found_out(checkpoint, gathered, make, monkeypatch, caplog):
    with Ranks(checkpoint) as alone:
        kind = type(alone.runners[0].model)
        monkeypatch.setattr(kind, "compute_logits", changing(make))
        wanted = tokens(alone, GREEDY)
    with Ranks(checkpoint, tensor_parallel_size=2) as ranks:
        assert tokens(ranks, GREEDY) == wanted
        assert {runner.stage.vocabulary._fit for runner in ranks.runners} == {False}
    assert sorted(gathered)[:2] == [1, 1] and sorted(gathered)[2] > VOCABULARY // 2
    assert "gathered for every token" in caplog.text


class Other(Group):
    """The second of two ranks; the first one's columns are given."""

    def __init__(self, first):
        super().__init__(1, 2)
        self.first = first

    def all_gather(self, tensor, dim=-1):
        return torch.cat((self.first, tensor), dim)


def test_ties_padding_and_what_is_no_number():
    """Equal logits: the lowest id. NaN is found on whichever rank it is."""
    peaks = torch.tensor([1.0, 2.0, 2.0, math.nan, -math.inf])
    first = torch.stack((peaks, torch.tensor([4.0, 5, 6, 7, 0]))).double().unsqueeze(0)
    local = LocalLogits()
    rows = [[0.0, 3.0], [2.0, 1.0], [0.0, math.nan], [0.0, 1.0], [-math.inf, -math.inf]]
    local.set(torch.tensor(rows), 64)
    with use_groups(tensor=Other(first)):
        best = joined(local)
        assert best.ids.tolist() == [65, 5, 65, 7, 0]
        assert best.logits.isnan().tolist() == [False, False, True, True, False]
        local.set(torch.empty(5, 0), 128)
        assert joined(local).ids.tolist()[:3] == [4, 5, 6]


def test_one_process_knows_no_parts():
    """Within `local_logits` a vocabulary that nobody divides stays whole, and is not noted."""
    head = ParallelLMHead(10, 4)
    place(head, None)
    head.weight = torch.nn.Parameter(torch.eye(10, 4), requires_grad=False)
    with local_logits() as local:
        assert LogitsProcessor(10)(head, torch.ones(2, 4)).shape == (2, 10)
    assert local.made is None
