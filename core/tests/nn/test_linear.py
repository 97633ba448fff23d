"""The linear family and the vocabulary layers, on one rank and on every rank of several."""

import pytest
import torch
import torch.nn.functional as F

from bestiary.api.errors import UsageError, WeightsMismatch
from bestiary.nn.embedding import ParallelLMHead, VocabParallelEmbedding
from bestiary.nn.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from bestiary.nn.logits import LogitsProcessor
from bestiary.nn.parallel import Group, use_groups
from bestiary.nn.placement import finish, materialize, place
from bestiary.nn.quant.int8 import Int8Config
from bestiary.nn.scope import build_scope
from bestiary.nn.weights.fill import elements_filled, load_into

CPU = torch.device("cpu")


class Ranks:
    """Builds one layer on each of `size` ranks in turn and runs them, with collectives done by hand."""

    def __init__(self, size, vllm_config):
        self.size, self.vllm_config = size, vllm_config

    def build(self, make, fill):
        layers = []
        for rank in range(self.size):
            with use_groups(tensor=Group(rank, self.size)), build_scope(self.vllm_config):
                layer = make()
                place(layer, None)
                materialize(layer, CPU)
                fill(layer)
                for param in layer.parameters():
                    assert elements_filled(param) == param.numel()
                finish(layer)
            layers.append(layer)
        return layers


@pytest.fixture(params=[1, 2, 4])
def ranks(request, vllm_config):
    return Ranks(request.param, vllm_config)


def test_finishing_tells_how_far_it_is(scope):
    embedding = VocabParallelEmbedding(64, 8)
    model = torch.nn.Sequential(embedding, ReplicatedLinear(8, 16), ParallelLMHead(64, 8).tie_weights(embedding))
    place(model, None)
    materialize(model, CPU)
    told = []
    finish(model, lambda *steps: told.append(steps))
    table, whole = 4 * 64 * 8, 4 * (64 * 8 + 8 * 16 + 16)
    assert told == [(table, whole), (whole, whole), (whole, whole)]


def test_parameters_are_made_on_meta(scope):
    layer = ColumnParallelLinear(8, 16)
    assert layer.weight.is_meta and layer.bias.is_meta
    assert torch.nn.Linear(4, 4).weight.is_meta


def test_column_then_row_equals_the_dense_product(ranks):
    up_w, up_b = torch.randn(32, 8), torch.randn(32)
    down_w, down_b = torch.randn(8, 32), torch.randn(8)
    x = torch.randn(5, 8)

    def fill_up(layer):
        load_into(layer.weight, up_w)
        load_into(layer.bias, up_b)

    def fill_down(layer):
        load_into(layer.weight, down_w)
        load_into(layer.bias, down_b)

    ups = ranks.build(lambda: ColumnParallelLinear(8, 32), fill_up)
    downs = ranks.build(lambda: RowParallelLinear(32, 8), fill_down)
    partial = [down(up(x)[0])[0] for up, down in zip(ups, downs, strict=True)]
    torch.testing.assert_close(sum(partial), F.linear(F.linear(x, up_w, up_b), down_w, down_b), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("fused_on_disk", [False, True])
def test_merged_column_shards_lie_side_by_side(ranks, fused_on_disk):
    gate, up = torch.randn(16, 8), torch.randn(24, 8)
    x = torch.randn(3, 8)

    def fill(layer):
        if fused_on_disk:
            load_into(layer.weight, torch.cat([gate, up]))
        else:
            load_into(layer.weight, up, 1)
            load_into(layer.weight, gate, 0)

    outputs = [
        layer(x)[0].split(layer.output_partition_sizes, dim=-1)
        for layer in ranks.build(lambda: MergedColumnParallelLinear(8, [16, 24], bias=False), fill)
    ]
    torch.testing.assert_close(torch.cat([each[0] for each in outputs], -1), F.linear(x, gate))
    torch.testing.assert_close(torch.cat([each[1] for each in outputs], -1), F.linear(x, up))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_qkv_replicates_key_value_heads_where_ranks_outnumber_them(ranks, kv_heads):
    head, heads = 6, 4
    q, k, v = torch.randn(heads * head, 8), torch.randn(kv_heads * head, 8), torch.randn(kv_heads * head, 8)
    x = torch.randn(3, 8)

    def fill(layer):
        load_into(layer.weight, q, "q")
        load_into(layer.weight, k, "k")
        load_into(layer.weight, v, "v")

    layers = ranks.build(lambda: QKVParallelLinear(8, head, heads, kv_heads, bias=False), fill)
    want_q = F.linear(x, q).view(3, heads, head)
    want_k, want_v = (F.linear(x, each).view(3, kv_heads, head) for each in (k, v))
    for rank, layer in enumerate(layers):
        got_q, got_k, got_v = layer(x)[0].split(layer.split_sizes, dim=-1)
        own = slice(rank * layer.num_heads, (rank + 1) * layer.num_heads)
        torch.testing.assert_close(got_q.view(3, -1, head), want_q[:, own])
        first = own.start * kv_heads // heads
        torch.testing.assert_close(got_k.view(3, -1, head), want_k[:, first : first + layer.num_kv_heads])
        torch.testing.assert_close(got_v.view(3, -1, head), want_v[:, first : first + layer.num_kv_heads])


def interleaved(q, k, v, kv_heads):
    """Projections as some checkpoints fuse them: key/value head by head, its queries' rows, its key's, its value's."""
    parts = [part.view(kv_heads, -1, *part.shape[1:]) for part in (q, k, v)]
    return torch.cat(parts, 1).flatten(0, 1)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (8, 2), (4, 1)])
def test_interleaved_projections_are_those_of_their_parts(ranks, heads, kv_heads, int8):
    """The same parameters, weight, bias and scales, as from three tensors: for heads of one size and of two."""
    head, v_head = 6, 5
    sizes = heads * head, kv_heads * head, kv_heads * v_head
    weights, biases = [torch.randn(size, 8) for size in sizes], [torch.randn(size) for size in sizes]

    def make(**options):
        layer = QKVParallelLinear(8, head, heads, kv_heads, v_head_size=v_head, **options)
        layer.place(Int8Config() if int8 else None)
        return layer

    def fill_parts(layer):
        for shard, weight, bias in zip("qkv", weights, biases, strict=True):
            load_into(layer.weight, weight, shard)
            load_into(layer.bias, bias, shard)

    def fill_fused(layer):
        load_into(layer.weight, interleaved(*weights, kv_heads))
        load_into(layer.bias, interleaved(*biases, kv_heads))

    apart = ranks.build(make, fill_parts)
    fused = ranks.build(lambda: make(interleaved=True), fill_fused)
    for one, other in zip(apart, fused, strict=True):
        assert {name for name, _ in one.named_parameters()} == {name for name, _ in other.named_parameters()}
        for name, param in one.named_parameters():
            assert torch.equal(param, other.get_parameter(name)), name
    wide = torch.cat(weights).T.contiguous()  # as an adapter's factor may lie
    assert torch.equal(fused[0].deinterleave(interleaved(*weights, kv_heads).T, dim=1), wide)


def test_interleaved_layers_load_parts_as_others_do(scope):
    layer = QKVParallelLinear(8, 4, 2, bias=False, interleaved=True)
    materialize(layer, CPU)
    parts = [torch.randn(8, 8) for _ in "qkv"]
    for shard, part in zip("qkv", parts, strict=True):
        load_into(layer.weight, part, shard)
    assert torch.equal(layer.weight, torch.cat(parts))
    with pytest.raises(WeightsMismatch, match="expected 24 rows"):
        load_into(layer.weight, torch.zeros(23, 8))


@pytest.mark.parametrize("vocab", [7, 64, 129])
def test_vocabulary_of_any_size_is_split_and_joined(ranks, vocab):
    weight, bias = torch.randn(vocab, 8), torch.randn(vocab)
    ids = torch.randint(0, vocab, (11,))

    def fill(layer):
        load_into(layer.weight, weight)

    def fill_head(layer):
        load_into(layer.weight, weight)
        load_into(layer.bias, bias)

    embeddings = ranks.build(lambda: VocabParallelEmbedding(vocab, 8), fill)
    torch.testing.assert_close(sum(layer(ids) for layer in embeddings), weight[ids])
    heads = ranks.build(lambda: ParallelLMHead(vocab, 8, bias=True), fill_head)
    x = torch.randn(3, 8)
    logits = torch.cat([head.quant_method.apply(head, x, head.bias) for head in heads], -1)
    torch.testing.assert_close(logits[:, :vocab], F.linear(x, weight, bias))


def test_logits_scale_and_soft_cap(scope):
    head = ParallelLMHead(10, 4)
    materialize(head, CPU)
    load_into(head.weight, torch.randn(10, 4))
    x = torch.randn(2, 4)
    raw = F.linear(x, head.weight)
    torch.testing.assert_close(LogitsProcessor(10)(head, x), raw)
    torch.testing.assert_close(LogitsProcessor(10, scale=0.5)(head, x), raw * 0.5)
    torch.testing.assert_close(LogitsProcessor(10, soft_cap=3.0)(head, x), 3 * torch.tanh(raw / 3))
    torch.testing.assert_close(LogitsProcessor(12, org_vocab_size=8)(head, x), raw[:, :8])
    assert torch.equal(LogitsProcessor(10, logits_as_input=True)(head, raw), raw)


def test_a_tied_head_shares_the_embedding(scope):
    embedding, head = VocabParallelEmbedding(10, 4), ParallelLMHead(10, 4)
    model = torch.nn.ModuleList([head.tie_weights(embedding), embedding])
    place(model, None)
    materialize(model, CPU)
    assert head.weight is embedding.weight


def test_bias_is_given_back_only_where_asked_for(scope):
    plain, skipped = ReplicatedLinear(4, 4), ReplicatedLinear(4, 4, skip_bias_add=True)
    bare = ReplicatedLinear(4, 4, return_bias=False)
    for layer in (plain, skipped, bare):
        materialize(layer, CPU)
        load_into(layer.weight, torch.eye(4))
        load_into(layer.bias, torch.ones(4))
    x = torch.zeros(1, 4)
    assert plain(x)[1] is None and torch.equal(plain(x)[0], torch.ones(1, 4))
    assert torch.equal(skipped(x)[0], x) and torch.equal(skipped(x)[1], torch.ones(4))
    assert torch.equal(bare(x), torch.ones(1, 4))


def test_what_does_not_divide_is_refused_with_the_rule(vllm_config):
    with use_groups(tensor=Group(0, 4)), build_scope(vllm_config):
        with pytest.raises(UsageError, match="multiple of 4") as caught:
            QKVParallelLinear(8, 4, 6)
        assert caught.value.field == "num_attention_heads"
        with pytest.raises(UsageError, match="output_size = 10"):
            ColumnParallelLinear(8, 10)


def test_wrong_shapes_and_shards_are_named(scope):
    layer = QKVParallelLinear(8, 4, 2, 1, bias=False)
    materialize(layer, CPU)
    with pytest.raises(WeightsMismatch, match=r"expected shape \[4, 8\]"):
        load_into(layer.weight, torch.zeros(8, 8), "k")
    with pytest.raises(WeightsMismatch, match="no shard 0"):
        load_into(layer.weight, torch.zeros(4, 8), 0)
    with pytest.raises(WeightsMismatch, match="expected 16 rows"):
        load_into(layer.weight, torch.zeros(15, 8))
