"""Functions around model files, one by one: renames, loaders of single parameters under two ranks, small helpers."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bestiary.api.errors import ConfigError, UsageError
from bestiary.nn import PPMissingLayer, VocabParallelEmbedding
from bestiary.nn.parallel import Group, use_groups
from bestiary_vllm.older import adapt
from bestiary_vllm.shims import config, distributed, interfaces, loader, logits, mapper, norm, stack, utilities


def names(made: mapper.WeightsMapper, *given: str):
    return [(str(name), getattr(tensor, "shard_id", None)) for name, tensor in made.apply(_stream(*given))]


def _stream(*given: str):
    return ((name, torch.zeros(1)) for name in given)


def test_renames_follow_each_other():
    made = mapper.WeightsMapper(
        orig_to_new_regex={r"^transformer\.h\.(\d+)": r"model.blocks.\1"},
        orig_to_new_substr={"blocks": "layers", ".attention": ".attn"},
        orig_to_new_stacked={".attn.query": (".attn.qkv", "q")},
        orig_to_new_prefix={"model.": "language_model."},
        orig_to_new_suffix={".gamma": ".weight"},
    )
    assert names(made, "transformer.h.3.attention.query.gamma") == [("language_model.layers.3.attn.qkv.weight", "q")]


def test_one_tensor_fills_several_parts():
    made = mapper.WeightsMapper(orig_to_new_stacked={".shared": (".gate_up", [0, 1])})
    assert names(made, "mlp.shared.weight") == [("mlp.gate_up.weight", 0), ("mlp.gate_up.weight", 1)]


def test_what_is_mapped_to_none_is_left_out():
    made = mapper.WeightsMapper(orig_to_new_prefix={"mtp.": None}, orig_to_new_substr={"inv_freq": None})
    assert names(made, "mtp.x", "a.inv_freq", "a.weight") == [("a.weight", None)]
    assert made.map_name("mtp.x") is None


def test_mappers_are_joined_and_reduced_to_renames():
    first = mapper.WeightsMapper(orig_to_new_prefix={"a.": "b."}, orig_to_new_stacked={".q": (".qkv", "q")})
    both = first | mapper.WeightsMapper(orig_to_new_prefix={"c.": "d.", "e.": None})
    assert names(both, "a.q", "c.x", "e.x") == [("b.qkv", "q"), ("d.x", None)]
    assert names(both.get_rename_mapper(), "a.q", "e.x") == [("b.q", None), ("e.x", None)]
    assert both.apply_dict({"a.x": 1, "e.x": 2}) == {"b.x": 1}


@pytest.mark.parametrize("rank", [0, 1])
def test_parts_of_ranks(rank):
    whole = torch.arange(12.0).view(4, 3)
    with use_groups(tensor=Group(rank, 2)):
        rows, columns = torch.empty(2, 3), torch.empty(4, 1)
        loader.sharded_weight_loader(0)(rows, whole)
        loader.sharded_weight_loader(1)(columns, whole[:, :2])
        vector = torch.empty(4)
        loader.row_parallel_weight_loader(vector, whole[:, 0])
        by_heads = torch.empty(2, 3)
        loader.row_parallel_weight_loader(by_heads, whole)
        sink = loader.make_attention_sink(2)
        sink.weight_loader(sink, whole[:, 0])
    assert torch.equal(rows, whole.chunk(2)[rank])
    assert torch.equal(columns, whole[:, rank : rank + 1])
    assert torch.equal(vector, whole[:, 0]), "a vector is the same on every rank"
    assert torch.equal(by_heads, rows)
    assert torch.equal(sink.data, whole[:, 0].chunk(2)[rank])


def test_a_loader_and_a_function():
    param = torch.empty(3)
    loader.composed_weight_loader(loader.sharded_weight_loader(0), lambda x: -x.exp())(param, torch.zeros(3))
    assert param.tolist() == [-1.0, -1.0, -1.0]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("l.attn.q_proj.weight", "l.attn.q_proj.weight"),
        ("l.k_scale", "l.attn.k_scale"),
        ("l.kv_scale", "l.attn.k_scale"),
        ("l.q_proj.weight_scale", "l.q_proj.weight_scale"),
        ("l.v_scale", None),
    ],
)
def test_scales_of_the_cache(name, meant):
    assert loader.maybe_remap_kv_scale_name(name, {"l.attn.k_scale": 0}) == meant


def test_an_embedding_of_two_names_is_loaded_once():
    model = nn.Module()
    model.embed = VocabParallelEmbedding(4, 2)
    model.embed.weight = nn.Parameter(torch.zeros(4, 2))
    model.head = nn.Module()
    model.head.weight = model.embed.weight
    stream = [("embed.weight", torch.ones(4, 2)), ("head.weight", torch.full((4, 2), 9.0))]
    assert loader.AutoWeightsLoader(model).load_weights(stream) == {"embed.weight"}
    assert torch.equal(model.embed.weight.data, torch.ones(4, 2))


def test_the_first_field_that_is_there(caplog):
    fields = SimpleNamespace(n_heads=3)
    assert config.getattr_iter(fields, ["num_heads", "n_heads"], warn=True) == 3
    assert "'n_heads' is an older name" in caplog.text
    assert config.getattr_iter(fields, ["a", "b"], 7) == 7
    assert config.getattr_iter(fields, ["a"], default_factory=list) == []


def test_a_base_is_given_only_where_there_is_none():
    empty, known = SimpleNamespace(), SimpleNamespace(rope_parameters={"rope_theta": 5.0})
    for each in (empty, known):
        config.set_default_rope_theta(each, 9.0)
    assert (empty.rope_parameters["rope_theta"], known.rope_parameters["rope_theta"]) == (9.0, 5.0)


def test_dtypes_by_name():
    assert config.str_dtype_to_torch_dtype("half") is torch.float16
    with pytest.raises(ConfigError, match="no such dtype"):
        config.str_dtype_to_torch_dtype("float7")


def test_division_is_even_or_an_error():
    assert distributed.divide(6, 3) == 2
    with pytest.raises(UsageError):
        distributed.divide(7, 3)


def test_groups_answer_for_their_ranks():
    with use_groups(tensor=Group(1, 2)):
        group = distributed.get_tp_group()
        assert (group.device_group.size(), group.device_group.rank(), group.rank_in_group) == (2, 1, 1)


def test_layers_of_other_stages_and_of_drafts():
    model = nn.Module()
    model.norm, model.other = nn.Identity(), PPMissingLayer()
    assert stack.get_pp_missing_layer_names(model) == ["other."]
    draft = SimpleNamespace(num_hidden_layers=2, num_nextn_predict_layers=1)
    assert stack.get_spec_layer_idx_from_weight_name(draft, "model.layers.2.x") == 2
    kept = stack.skip_spec_layers(_stream("model.layers.1.x", "model.layers.2.x"), draft)
    assert [name for name, _ in kept] == ["model.layers.1.x"]


def test_children_become_placeholders_meanwhile():
    model = nn.Module()
    with stack.no_init_weights(model, lambda child: stack.StageMissingLayer("head", child), targets=nn.Linear):
        model.head, model.norm = nn.Linear(2, 2), nn.Identity()
    assert isinstance(model.head, stack.StageMissingLayer) and isinstance(model.norm, nn.Identity)
    assert model.head.in_features == 2 and not list(model.parameters())
    with pytest.raises(RuntimeError, match="left out"):
        model.head(torch.zeros(2))


def test_tokens_are_divided_among_ranks():
    with use_groups(tensor=Group(1, 2)):
        assert stack.sequence_parallel_chunk(torch.arange(3)[:, None]).tolist() == [[2], [0]]


def test_numbers_that_overflow_come_back():
    found = stack.cast_overflow_tensors(torch.tensor([float("inf"), 1.0], dtype=torch.float16), offset=1024)
    assert found.tolist() == [torch.finfo(torch.float16).max - 1024, 1.0]


def test_norm_of_powers():
    layer = norm.PolyNorm(eps=0.0)
    layer.weight.data, layer.bias.data = torch.tensor([1.0, 10.0, 100.0]), torch.tensor([0.5])
    x = torch.tensor([[3.0, -4.0]])
    each = [power / power.pow(2).mean().sqrt() for power in (x**3, x**2, x)]
    torch.testing.assert_close(layer(x), each[0] + 10 * each[1] + 100 * each[2] + 0.5)


def test_the_plain_version_of_a_norm_is_the_norm():
    layer = norm.RMSNorm(2)
    layer.weight = nn.Parameter(torch.ones(2))
    x = torch.tensor([[3.0, 4.0]])
    assert torch.equal(layer.forward_native(x), layer(x))


def test_numbers_are_rounded_up():
    assert (utilities.cdiv(7, 2), utilities.round_up(7, 4)) == (4, 8)


class OfOtherStages(nn.Module):
    def forward(self, input_ids, positions, intermediate_tensors, inputs_embeds=5):
        return input_ids, positions, intermediate_tensors, inputs_embeds


class OfOtherStagesByName(nn.Module):
    def forward(self, input_ids, positions, *, intermediate_tensors, inputs_embeds=5):
        return input_ids, positions, intermediate_tensors, inputs_embeds


def test_forward_can_do_without_other_stages():
    adapt(OfOtherStages)
    assert OfOtherStages()(1, 2) == (1, 2, None, 5)
    assert OfOtherStages()(1, 2, 3, 4) == (1, 2, 3, 4)
    adapt(OfOtherStagesByName)
    assert OfOtherStagesByName()(1, 2) == (1, 2, None, 5)
    assert OfOtherStagesByName()(1, 2, intermediate_tensors=3) == (1, 2, 3, 5)


class WithoutEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), Doubling(4, 2))

    def compute_logits(self, hidden_states):
        return hidden_states


class Doubling(VocabParallelEmbedding):
    def forward(self, input_ids):
        return 2 * input_ids


def test_tokens_are_embedded_by_the_first_embedding():
    adapt(WithoutEmbedding)
    assert WithoutEmbedding().embed_input_ids(3) == 6


class Head:
    bias, tp_size = None, 1
    quant_method = SimpleNamespace(apply=lambda head, x, bias: x if bias is None else x + bias)


def test_logits_with_and_without_sampling_metadata():
    processor, x, bias = logits.LogitsProcessor(2), torch.zeros(1, 2), torch.ones(2)
    for rest in ((bias,), (None, bias), (object(), bias)):
        assert processor(Head, x, *rest).tolist() == [[1.0, 1.0]]
    assert processor(Head, x, embedding_bias=bias).tolist() == [[1.0, 1.0]]
    for rest in ((), (None,), (object(),), (None, None)):
        assert processor(Head, x, *rest).tolist() == [[0.0, 0.0]]


def test_what_a_class_says_of_itself():
    @interfaces.attn_type("encoder_only")
    @interfaces.default_pooling_type(seq_pooling_type="CLS")
    class Model(interfaces.HasNoOps):
        pass

    assert interfaces.has_noops(Model) and not interfaces.supports_pp(Model)
    assert (Model.attn_type, Model.default_pooling_type) == ("encoder_only", "CLS")
