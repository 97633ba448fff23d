"""Experts that move among ranks: ranks are threads with real collectives, and answers stay what they were."""

import threading

import pytest
import torch
import torch.distributed as dist

from bestiary.api.errors import ConfigError
from bestiary.nn import FusedMoE
from bestiary.nn.moe.balance import imbalance, rebalanced
from bestiary.nn.moe.load import ExpertLoad
from bestiary.nn.moe.moving import move_experts, refuse_unlike_slots
from bestiary.nn.moe.placement import ExpertPlacement
from bestiary.nn.parallel import use_groups
from bestiary.nn.parallel.distributed import TorchGroup
from bestiary.nn.placement import finish, materialize, place
from bestiary.nn.quant.int8 import Int8Config
from bestiary.nn.weights import load_complete

EXPERTS, HIDDEN, WIDTH, RANKS, SPARE = 6, 24, 40, 2, 2


class Rank:
    """One rank's layer, and its end of the group."""

    def __init__(self, rank, quant_config):
        self.group = TorchGroup(rank, RANKS)
        model = torch.nn.Module()
        with use_groups(tensor=self.group, expert=self.group):
            model.experts = FusedMoE(EXPERTS, 2, HIDDEN, WIDTH, params_dtype=torch.float32, num_redundant_experts=SPARE)
        place(model, quant_config)
        materialize(model, torch.device("cpu"))
        load_complete(model, weights())
        finish(model)
        self.layer = model.experts
        self.layer.load = ExpertLoad(EXPERTS, 4, torch.device("cpu"))
        self.factors = torch.zeros(3, self.layer.placement.num_local, 5)
        for slot, expert in enumerate(self.layer.placement.on_rank(rank)):
            self.factors[:, slot] = expert
        self.layer.keep_with_experts(self.factors, 1)


def weights():
    generator = torch.Generator().manual_seed(0)
    for expert in range(EXPERTS):
        for name, shape in (("gate", (WIDTH, HIDDEN)), ("up", (WIDTH, HIDDEN)), ("down", (HIDDEN, WIDTH))):
            yield f"experts.{expert}.{name}_proj.weight", torch.randn(shape, generator=generator) * 0.3


def together(ranks, work):
    """What `work` returns for each rank, all at the same time."""
    found = [None] * len(ranks)

    def run(index):
        with torch.inference_mode():
            found[index] = work(ranks[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return found


@pytest.fixture(params=[None, Int8Config()], ids=["plain", "int8"])
def ranks(request):
    made = [Rank(rank, request.param) for rank in range(RANKS)]
    store = dist.HashStore()
    together(made, lambda rank: rank.group.connect(store, device="cpu", address="127.0.0.1", timeout=20.0))
    yield made
    for rank in made:
        rank.group.close()


def skewed(tokens=40):
    """Tokens whose router likes expert 2 best, then expert 0."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(tokens, EXPERTS, generator=generator)
    logits[:, 2] += 4
    logits[:, 0] += 1.5
    return torch.randn(tokens, HIDDEN, generator=generator), logits


def rows_of(ranks, logits):
    """How many rows each rank computes."""
    ids = ranks[0].layer.route(logits, logits)[1]
    return [int((rank.layer._slots(ids) >= 0).sum()) for rank in ranks]


def test_answers_stay_while_experts_move_to_where_the_load_is(ranks):
    x, logits = skewed()
    before = together(ranks, lambda rank: rank.layer(x, logits))
    loads = [rank.layer.load.total().tolist() for rank in ranks]
    assert loads[0] == loads[1] and sum(loads[0]) == 2 * len(x) and loads[0][2] == len(x)
    old = ranks[0].layer.placement
    new = rebalanced(old, loads[0])
    assert imbalance(new, loads[0]) < 1.1 < 1.3 < imbalance(old, loads[0])
    rows = rows_of(ranks, logits)
    for placement in (new, old, ExpertPlacement(EXPERTS, RANKS, (5, 2, 2, 3, 4, 1, 0, 2)), new):
        together(ranks, lambda rank, there=placement: move_experts(rank.layer, there, rank.group))
        after = together(ranks, lambda rank: rank.layer(x, logits))
        torch.testing.assert_close(after[0], before[0], atol=1e-5, rtol=1e-5)
        assert torch.equal(after[0], after[1])
        for index, rank in enumerate(ranks):
            assert rank.layer.placement == placement
            assert rank.factors[0, :, 0].tolist() == list(placement.on_rank(index)), "factors come along"
    assert max(rows_of(ranks, logits)) < max(rows) - len(x) // 8


def test_the_same_placement_moves_nothing(ranks):
    held = [[each.clone() for each in rank.layer.expert_tensors(1)] for rank in ranks]
    together(ranks, lambda rank: move_experts(rank.layer, rank.layer.placement, rank.group))
    for rank, tensors in zip(ranks, held, strict=True):
        assert all(map(torch.equal, rank.layer.expert_tensors(1), tensors))


def test_slots_that_are_not_alike_are_refused():
    layer = Rank(0, None).layer
    refuse_unlike_slots(layer)
    layer._w2.layers[1].scale_kept_aside = torch.ones(3)
    with pytest.raises(ConfigError, match="cannot move: slot 1") as caught:
        refuse_unlike_slots(layer)
    assert caught.value.error_code == "EXPERTS_CANNOT_MOVE"
