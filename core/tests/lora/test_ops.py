"""The ops, row by row; and the layers' own shard arithmetic, applied to factors."""

import pytest
import torch
from torch import nn

from bestiary.api.config import LoRAConfig
from bestiary.api.errors import EngineError, WeightsMismatch
from bestiary.nn import (
    ColumnParallelLinear,
    FusedMoE,
    MergedColumnParallelLinear,
    ParallelLMHead,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
)
from bestiary.nn.context import ForwardContext, forward_context
from bestiary.nn.lora import Piece, SlotRows, attach
from bestiary.nn.ops.lora import FIXED_TILE, FIXED_TILE_EMBEDDING, add_lora, add_lora_embedding
from bestiary.nn.parallel import Group, use_groups
from bestiary.nn.placement import finish, materialize, place
from bestiary.nn.scope import build_scope

SLOTS = [2, -1, 0, 0, -1, 2, 1]


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(slots=SLOTS):
    return SlotRows.of(slots, torch.device("cpu"))


@pytest.mark.parametrize("version", [add_lora.reference, FIXED_TILE.function])
@pytest.mark.parametrize("extra", [(), (3,)])
def test_rows_get_what_their_own_slot_says(version, extra):
    x, out = numbers(7, *extra, 6), numbers(7, *extra, 5, seed=1)
    a, b = numbers(4, 2, 4, 6, seed=2), numbers(4, 5, 4, seed=3)
    ranks = {0: 4, 2: 3}  # slot 1 holds nothing
    a[2, :, 3:], b[2, :, 3:] = 0, 0
    want = out.clone()
    for row, slot in enumerate(SLOTS):
        if slot in ranks:
            want[row] += torch.cat([(x[row] @ a[slot, 0].t()) @ b[slot, :3].t(),
                                    (x[row] @ a[slot, 1].t()) @ b[slot, 3:].t()], -1)  # fmt: skip
    before = out[1].clone()
    got = version(out, x, a, b, (3, 2), rows(), ranks)
    torch.testing.assert_close(got, want)
    assert torch.equal(got[1], before)


@pytest.mark.parametrize("version", [add_lora_embedding.reference, FIXED_TILE_EMBEDDING.function])
def test_embeddings_look_their_first_factor_up(version):
    ids, out = torch.tensor([3, 1, 4, 1, 5, 0, 2]), numbers(7, 5)
    a, b = numbers(3, 6, 2, seed=2), numbers(3, 5, 2, seed=3)
    want = out.clone()
    for row, slot in enumerate(SLOTS):
        if slot >= 0:
            want[row] += a[slot, ids[row]] @ b[slot].t()
    torch.testing.assert_close(version(out, ids, a, b, rows(), {0: 2, 1: 2, 2: 2}), want)


def test_fixed_tiles_do_not_depend_on_who_else_has_the_adapter():
    x, a, b = numbers(40, 64), numbers(1, 1, 8, 64, seed=1), numbers(1, 32, 8, seed=2)
    whole = FIXED_TILE.function(torch.zeros(40, 32), x, a, b, (32,), rows([0] * 40), {0: 8})
    for count in (1, 3, 17):
        some = FIXED_TILE.function(torch.zeros(count, 32), x[:count], a, b, (32,), rows([0] * count), {0: 8})
        assert torch.equal(some, whole[:count])


def test_low_precision_is_rounded_once():
    x, a, b = (numbers(*shape, seed=at).bfloat16() for at, shape in enumerate([(1, 64), (1, 1, 8, 64), (1, 4, 8)]))
    got = add_lora(torch.zeros(1, 4, dtype=torch.bfloat16), x, a, b, (4,), rows([0]), {0: 8})
    want = (x.float() @ a[0, 0].float().t()) @ b[0].float().t()
    assert torch.equal(got, want.bfloat16())


def test_rows_of_slots():
    assert rows([-1, -1]) is None
    found = rows()
    assert [(slot, index.tolist()) for slot, index in found.groups] == [(0, [2, 3]), (1, [6]), (2, [0, 5])]
    assert found.within({1: 4}).groups[0][0] == 1 and found.within({5: 1}) is None
    picked = found.pick(torch.tensor([5, 5, 1, 6]))
    assert [(slot, index.tolist()) for slot, index in picked.groups] == [(1, [3]), (2, [0, 1])]


def test_runs_of_rows():
    found = rows([-1, 2, 2, 2, 0, 0, -1, 2])
    assert found.runs.found == ((2, 1, 4), (0, 4, 6), (2, 7, 8))
    assert (found.runs.count, found.runs.adapted, found.runs.slots) == (8, 6, (0, 2))
    assert found.runs.tiles(2).tolist() == [[2, 1, 3], [2, 3, 4], [0, 4, 6], [2, 7, 8]]
    assert found.runs.tile_count(2) == 4 and found.runs.tiles(2).dtype is torch.int32
    named = found.within({0: 4})
    assert named.runs.tiles(2) is found.runs.tiles(2)
    assert [(slot, index.tolist()) for slot, index in named.groups] == [(0, [4, 5])]
    assert found.within({2: 4}).groups[0][1] is found.groups[1][1]


def test_runs_of_picked_rows():
    assert rows([1, 1, 1]).pick(torch.tensor([2, 0])).runs.found == ((1, 0, 2),)
    assert rows([1, 1, 1]).pick(torch.tensor([], dtype=torch.int64)).groups == ()
    for mixed in ([1, 1, -1], [1, 2, 2], [1, -1, 1]):
        assert rows(mixed).pick(torch.tensor([0, 1])).runs is None


# --- layers ---------------------------------------------------------------------------------------------------------


class Layers(nn.Module):
    packed_modules_mapping = {"qkv": ["q", "k", "v"], "gate_up": ["gate", "up"]}
    lora_skip_prefixes = ("skipped",)

    def __init__(self):
        super().__init__()
        self.plain = ReplicatedLinear(8, 6)
        self.column = ColumnParallelLinear(8, 12)
        self.row = RowParallelLinear(8, 6)
        self.qkv = QKVParallelLinear(8, 4, 4, 2)
        self.fused = QKVParallelLinear(8, 4, 4, 4, interleaved=True)
        self.gate_up = MergedColumnParallelLinear(8, [12, 12])
        self.embed = VocabParallelEmbedding(50, 8)
        self.head = ParallelLMHead(50, 8)
        self.moe = FusedMoE(4, 2, 8, 8)
        self.skipped = ReplicatedLinear(8, 6)


def ranks_of(vllm_config, size):
    """The same layers on every one of `size` tensor-parallel ranks, weights zero, with slots."""
    made = []
    for rank in range(size):
        with use_groups(tensor=Group(rank, size)):
            with build_scope(vllm_config):
                model = Layers()
                place(model, None)
            materialize(model, torch.device("cpu"))
            for param in model.parameters():
                param.data.zero_()
            finish(model)
            made.append((model, attach(model, LoRAConfig(max_loras=2, max_lora_rank=4), torch.device("cpu"))))
    return made


def piece(name, out, width, rank=3, seed=0, **more):
    return Piece(name, numbers(rank, width, seed=seed), numbers(out, rank, seed=seed + 1), 0.5, **more)


def change(each):
    return 0.5 * each.b @ each.a


def run(model, name, x, slots):
    context = ForwardContext(None, {}, rows(slots))
    layer = getattr(model, name)
    with forward_context(context), torch.inference_mode():
        return layer.quant_method.apply(layer, x)


@pytest.fixture
def vllm_config():
    from types import SimpleNamespace

    from bestiary.api.config import ModelConfig, VllmConfig

    bag = SimpleNamespace(model_type="test")
    return VllmConfig(
        model_config=ModelConfig(
            model="t", architecture="T", hf_config=bag, hf_text_config=bag, dtype=torch.float32, max_model_len=64
        )
    )


@pytest.mark.parametrize("size", [1, 2, 4])
def test_factors_are_cut_as_weights_are(size, vllm_config):
    """Column layers give each rank its outputs, row layers parts of a sum, heads their rows of the vocabulary."""
    x = numbers(3, 8, seed=9)
    pieces = [piece("plain", 6, 8), piece("column", 12, 8), piece("row", 6, 8), piece("head", 50, 8),
              piece("gate", 12, 8, seed=4), piece("up", 12, 8, rank=2, seed=6), piece("q", 16, 8), piece("v", 8, 8),
              piece("fused", 48, 8, seed=8)]  # fmt: skip
    by_name = {each.module: change(each) for each in pieces}
    got = {}
    for rank, (model, slots) in enumerate(ranks_of(vllm_config, size)):
        slots.load(1, slots.prepare(pieces))
        for name in ("plain", "column", "row", "head", "gate_up", "qkv", "fused"):
            width = 8 // size
            own = x[:, rank * width : (rank + 1) * width] if name == "row" else x
            out = run(model, name, own, [1, -1, 1])
            assert not out[1].any()
            got.setdefault(name, []).append(out)
    torch.testing.assert_close(got["plain"][-1][0], x[0] @ by_name["plain"].t())
    torch.testing.assert_close(torch.cat(got["column"], -1)[2], x[2] @ by_name["column"].t())
    torch.testing.assert_close(sum(got["row"])[0], x[0] @ by_name["row"].t())
    torch.testing.assert_close(torch.cat(got["head"], -1)[0, :50], x[0] @ by_name["head"].t())
    halves = [
        torch.cat(parts, -1)[0] for parts in zip(*(out.split(12 // size, -1) for out in got["gate_up"]), strict=True)
    ]
    torch.testing.assert_close(halves[0], x[0] @ by_name["gate"].t())
    torch.testing.assert_close(halves[1], x[0] @ by_name["up"].t())
    for rank, out in enumerate(got["qkv"]):
        q, k, v = out[0].split([16 // size, max(8 // size, 4), max(8 // size, 4)])
        torch.testing.assert_close(q, (x[0] @ by_name["q"].t()).chunk(size)[rank])
        assert not k.any()
        torch.testing.assert_close(v, (x[0] @ by_name["v"].t()).chunk(min(size, 2))[rank * min(size, 2) // size])
    heads = (x[0] @ by_name["fused"].t()).view(4, 3, 4)  # by head: its query, its key, its value
    for rank, out in enumerate(got["fused"]):
        torch.testing.assert_close(out[0].view(3, 4 // size, 4), heads.chunk(size)[rank].transpose(0, 1))


@pytest.mark.parametrize("size", [1, 2])
def test_vocabularies_are_cut_by_rows(size, vllm_config):
    each = piece("embed", 8, 50, of_embedding=True)
    ids = torch.tensor([49, 3, 0])
    got = []
    for model, slots in ranks_of(vllm_config, size):
        slots.load(0, slots.prepare([each]))
        with forward_context(ForwardContext(None, {}, rows([0, -1, 0]))):
            got.append(model.embed(ids))  # a simulated rank sums nothing: each gives its own part
    want = change(each).t()[ids]
    want[1] = 0
    torch.testing.assert_close(sum(got), want)


@pytest.mark.parametrize("stacked", [False, True])
def test_experts_have_their_own_factors(stacked, vllm_config):
    ((model, slots),) = ranks_of(vllm_config, 1)
    for param in model.moe.parameters():
        param.data.normal_(0, 0.3)
    if stacked:
        pieces = [piece("moe.base_layer", 16, 8, rank=8), piece("moe", 8, 8, rank=8, seed=3)]
        factors = [[(each.a.view(4, 2, -1)[e], each.b.view(len(each.b), 2, 4)[:, :, e]) for each in pieces]
                   for e in range(4)]  # fmt: skip
    else:
        names = ("gate_proj", "up_proj", "down_proj")
        pieces = [
            piece(f"moe.{e}.{name}", 8, 8, rank=2, seed=3 * e + at) for e in range(4) for at, name in enumerate(names)
        ]
    slots.load(1, slots.prepare(pieces))
    x, router = numbers(5, 8, seed=5), numbers(5, 4, seed=6)
    with torch.inference_mode():
        base = model.moe(x, router)
        with forward_context(ForwardContext(None, {}, rows([1, -1, 1, 1, -1]))):
            got = model.moe(x, router)
        for e in range(4):
            if stacked:
                (a13, b13), (a2, b2) = factors[e]
                model.moe.w13_weight[e] += 0.5 * b13 @ a13
                model.moe.w2_weight[e] += 0.5 * b2 @ a2
            else:
                gate, up, down = pieces[3 * e : 3 * e + 3]
                model.moe.w13_weight[e] += torch.cat([change(gate), change(up)])
                model.moe.w2_weight[e] += change(down)
        want = model.moe(x, router)
    torch.testing.assert_close(got[[0, 2, 3]], want[[0, 2, 3]])
    torch.testing.assert_close(got[[1, 4]], base[[1, 4]])


def test_every_piece_that_does_not_fit_is_named(vllm_config):
    ((_, slots),) = ranks_of(vllm_config, 1)
    wrong = [piece("plain", 7, 8), piece("skipped", 6, 8), piece("moe.4.gate_proj", 8, 8), piece("moe", 9, 8, rank=8),
             piece("moe.0.gate_proj", 8, 9), piece("column", 12, 8, rank=5), piece("embed", 8, 50)]  # fmt: skip
    with pytest.raises(WeightsMismatch) as caught:
        slots.prepare(wrong)
    assert {line.split(":")[0] for line in caught.value.details} == {each.module for each in wrong}


def test_slots_hold_what_was_loaded_last_and_nothing_else(vllm_config):
    ((model, slots),) = ranks_of(vllm_config, 1)
    x = numbers(1, 8)
    wide, narrow, other = piece("plain", 6, 8, rank=4), piece("plain", 6, 8, rank=1, seed=5), piece("row", 6, 8)
    for each in (wide, narrow):
        slots.load(0, slots.prepare([each]))
        torch.testing.assert_close(run(model, "plain", x, [0]), x @ change(each).t())
    slots.load(0, slots.prepare([other]))
    assert not run(model, "plain", x, [0]).any()
    assert all(not table.a[1].any() for table in slots.slots.values())
    assert slots.nbytes == sum(table.a.nbytes + table.b.nbytes for table in slots.slots.values())


def test_rows_that_are_not_the_steps_are_an_error(vllm_config):
    ((model, slots),) = ranks_of(vllm_config, 1)
    slots.load(0, slots.prepare([piece("plain", 6, 8)]))
    with pytest.raises(EngineError, match="plain computes 2 rows where the step has 3"):
        run(model, "plain", numbers(2, 8), [0, 0, 0])
