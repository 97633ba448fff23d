"""Names, fused shards, and loading that is complete or an error."""

import pytest
import torch
from torch import nn

from bestiary.api.errors import WeightsMismatch
from bestiary.nn.embedding import ParallelLMHead, VocabParallelEmbedding
from bestiary.nn.linear import MergedColumnParallelLinear, QKVParallelLinear
from bestiary.nn.placement import materialize, place
from bestiary.nn.stack import PPMissingLayer, extract_layer_index, is_pp_missing_parameter, make_layers
from bestiary.nn.weights import (
    AutoWeightsLoader,
    ShardedName,
    WeightsMapper,
    default_weight_loader,
    fill,
    load_complete,
)

CPU = torch.device("cpu")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv_proj = QKVParallelLinear(8, 4, 2, 1, bias=True)
        self.gate_up_proj = MergedColumnParallelLinear(8, [8, 8], bias=False)


class Model(nn.Module):
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}

    def __init__(self, tied=False):
        super().__init__()
        self.embed = VocabParallelEmbedding(10, 8)
        self.block = Block()
        self.head = ParallelLMHead(10, 8)
        if tied:
            self.head.tie_weights(self.embed)


def checkpoint(tied=False):
    made = {
        "embed.weight": torch.randn(10, 8),
        "block.q_proj.weight": torch.randn(8, 8),
        "block.q_proj.bias": torch.randn(8),
        "block.k_proj.weight": torch.randn(4, 8),
        "block.k_proj.bias": torch.randn(4),
        "block.v_proj.weight": torch.randn(4, 8),
        "block.v_proj.bias": torch.randn(4),
        "block.gate_proj.weight": torch.randn(8, 8),
        "block.up_proj.weight": torch.randn(8, 8),
        "head.weight": torch.randn(10, 8),
    }
    if tied:
        made["head.weight"] = made["embed.weight"].clone()
    return made


@pytest.fixture
def build(scope):
    def make(cls=Model, **options):
        model = cls(**options)
        place(model, None)
        materialize(model, CPU)
        return model

    return make


def test_fused_projections_are_found_through_one_mapping(build):
    model, tensors = build(), checkpoint()
    load_complete(model, tensors.items())
    want = torch.cat([tensors[f"block.{name}_proj.weight"] for name in "qkv"])
    assert torch.equal(model.block.qkv_proj.weight, want)
    want = torch.cat([tensors["block.gate_proj.weight"], tensors["block.up_proj.weight"]])
    assert torch.equal(model.block.gate_up_proj.weight, want)


def test_every_offender_is_reported_at_once(build):
    tensors = checkpoint()
    tensors["block.q_proj.weight"] = torch.zeros(9, 8)
    tensors["block.surprise"] = torch.zeros(3)
    tensors["other.weight"] = torch.zeros(3)
    with pytest.raises(WeightsMismatch) as caught:
        load_complete(build(), tensors.items())
    text = str(caught.value)
    assert "block.surprise [3]: no parameter" in text
    assert "other.weight" in text
    assert "block.q_proj.weight: expected shape [8, 8], the checkpoint has [9, 8]" in text
    assert caught.value.exit_code == 2


def test_a_misnamed_tensor_is_shown_beside_the_parameters_it_may_be_meant_for(build):
    tensors = checkpoint()
    tensors["output.weight"] = tensors.pop("head.weight")
    with pytest.raises(WeightsMismatch) as caught:
        load_complete(build(), tensors.items())
    assert caught.value.details == (
        "output.weight [10, 8]: no parameter of this name",
        "parameters without a tensor so far: head.weight",
    )


def test_what_the_checkpoint_lacks_is_named(build):
    tensors = checkpoint()
    del tensors["block.k_proj.bias"], tensors["head.weight"]
    with pytest.raises(WeightsMismatch) as caught:
        load_complete(build(), tensors.items())
    assert caught.value.details == (
        "block.qkv_proj.bias [16]: not filled by the checkpoint (12 of 16 elements)",
        "head.weight [10, 8]: not filled by the checkpoint (0 of 80 elements)",
    )


@pytest.mark.parametrize("order", [1, -1])
def test_tied_weights_may_be_there_twice_if_they_agree(build, order):
    tensors = checkpoint(tied=True)
    load_complete(build(tied=True), list(tensors.items())[::order])
    without = {name: tensor for name, tensor in tensors.items() if name != "head.weight"}
    load_complete(build(tied=True), without.items())
    tensors["head.weight"] = tensors["head.weight"] + 1
    with pytest.raises(WeightsMismatch, match="tied"):
        load_complete(build(tied=True), list(tensors.items())[::order])


def test_known_buffers_of_old_checkpoints_are_no_weights(build):
    tensors = checkpoint() | {"block.rotary_emb.inv_freq": torch.zeros(2)}
    load_complete(build(), tensors.items())


class Careless(Model):
    def load_weights(self, weights):
        kept = ((name, tensor) for name, tensor in weights if "up_proj" not in name)
        return AutoWeightsLoader(self).load_weights(kept)


def test_a_loader_that_ignores_tensors_is_caught(build):
    with pytest.raises(WeightsMismatch) as caught:
        load_complete(build(Careless), checkpoint().items())
    assert "block.up_proj.weight: in the checkpoint, but load_weights used it for nothing" in caught.value.details
    assert (
        "block.gate_up_proj.weight [16, 8]: not filled by the checkpoint (64 of 128 elements)" in caught.value.details
    )


class Twice(Model):
    def load_weights(self, weights):
        for name, tensor in weights:
            AutoWeightsLoader(self).load_weights([(name, tensor)])
            if name == "embed.weight":
                default_weight_loader(self.embed.weight, tensor + self.difference)


def test_a_part_may_come_twice_only_if_it_is_the_same(build):
    Twice.difference = 0.0
    load_complete(build(Twice), checkpoint().items())
    Twice.difference = 1.0
    with pytest.raises(WeightsMismatch, match="loaded already"):
        load_complete(build(Twice), checkpoint().items())


class Overlapping(Model):
    def load_weights(self, weights):
        for name, tensor in weights:
            AutoWeightsLoader(self).load_weights([(name, tensor)])
            if name == "embed.weight":
                fill(self.embed.weight, self.embed.weight.data[2:5], tensor[2:5])


def test_a_parameter_whose_parts_overlap_is_caught(build):
    with pytest.raises(WeightsMismatch, match="filled more than once"):
        load_complete(build(Overlapping), checkpoint().items())


@pytest.mark.parametrize(
    ("stacked", "words"),
    [
        ({".v_proj": (".qkv_proj", "k"), ".k_proj": (".qkv_proj", "k")}, "loaded already"),
        ({".up_proj": (".gate_up_proj", 0)}, "loaded already"),
    ],
)
def test_a_shard_taken_for_its_equally_large_neighbour_is_caught(build, stacked, words):
    """The elements would add up: k and v, gate and up have one size."""

    class Confused(Model):
        hf_to_vllm_mapper = WeightsMapper(orig_to_new_stacked=stacked)

    with pytest.raises(WeightsMismatch, match=words):
        load_complete(build(Confused), checkpoint().items())


def test_what_a_mapper_drops_is_no_mismatch(build):
    class Dropping(Model):
        hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix={"junk.": None})

    class OwnDropping(Model):
        def load_weights(self, weights):
            return AutoWeightsLoader(self).load_weights(weights, mapper=Dropping.hf_to_vllm_mapper)

    for cls in (Dropping, OwnDropping):
        load_complete(build(cls), (checkpoint() | {"junk.x": torch.zeros(2)}).items())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_numbers_of_another_kind_are_not_taken_for_weights(build, dtype):
    tensors = checkpoint()
    tensors["embed.weight"] = tensors["embed.weight"].to(dtype)
    with pytest.raises(WeightsMismatch, match="expected floating-point numbers"):
        load_complete(build(), tensors.items())


def test_numbers_too_large_for_the_model_s_type_are_an_error():
    param = nn.Parameter(torch.zeros(3, dtype=torch.float16))
    fill(param, param.data, torch.tensor([1.0, -6e4, float("inf")]))
    other = nn.Parameter(torch.zeros(3, dtype=torch.float16))
    with pytest.raises(WeightsMismatch, match="too large for float16"):
        fill(other, other.data, torch.tensor([1.0, 7e4, 0.0]))


@pytest.mark.gpu
def test_checkpoints_of_the_host_are_compared_with_a_gpu_s_parameters():
    param = nn.Parameter(torch.zeros(3, dtype=torch.float16, device="cuda"), requires_grad=False)
    for _ in range(2):
        fill(param, param.data, torch.tensor([1.0, -6e4, float("inf")]))
    with pytest.raises(WeightsMismatch, match="loaded already"):
        fill(param, param.data, torch.zeros(3))
    other = nn.Parameter(torch.zeros(3, dtype=torch.float16, device="cuda"), requires_grad=False)
    with pytest.raises(WeightsMismatch, match="too large for float16"):
        fill(other, other.data, torch.tensor([1.0, 7e4, 0.0]))


class Claiming(Model):
    def load_weights(self, weights):
        next(iter(weights))
        return {name for name, _ in self.named_parameters()}


class Copying(Model):
    """Writes past `fill`, as custom loaders of vLLM's files do."""

    def load_weights(self, weights):
        given = dict(weights)
        given["block.qkv_proj.weight"] = torch.cat([given[f"block.{name}_proj.weight"] for name in "qkv"])
        given["block.qkv_proj.bias"] = torch.cat([given[f"block.{name}_proj.bias"] for name in "qkv"])
        given["block.gate_up_proj.weight"] = torch.cat([given[f"block.{name}_proj.weight"] for name in ("gate", "up")])
        params = dict(self.named_parameters())
        for name, param in params.items():
            param.data.copy_(given[name])
        return set(params)


def test_a_loader_is_not_believed_that_it_wrote_a_parameter(build, caplog):
    with pytest.raises(WeightsMismatch, match="not filled by the checkpoint") as caught:
        load_complete(build(Claiming), checkpoint().items())
    assert "embed.weight [10, 8]: not filled by the checkpoint (0 of 80 elements)" in caught.value.details
    model, tensors = build(Copying), checkpoint()
    load_complete(model, tensors.items())
    assert torch.equal(model.block.qkv_proj.weight[8:12], tensors["block.k_proj.weight"])
    written = len(list(model.parameters()))
    assert f"tensor(s) out, or writes them itself into some of {written} parameter(s)" in caplog.text


class OldStyle(Model):
    """As models are written for vLLM: a loop over a table, skipping what is not wanted."""

    def load_weights(self, weights):
        table = [("qkv_proj", f"{name}_proj", name) for name in "qkv"]
        table += [("gate_up_proj", "gate_proj", 0), ("gate_up_proj", "up_proj", 1)]
        params, loaded = dict(self.named_parameters()), set()
        for name, tensor in list(weights):
            if name.endswith(".mask"):
                continue
            for fused, part, shard in table:
                if part in name:
                    name = name.replace(part, fused)
                    params[name].weight_loader(params[name], tensor, shard)
                    break
            else:
                loader = getattr(params[name], "weight_loader", default_weight_loader)
                loader(params[name], tensor)
            loaded.add(name)
        return loaded


def test_an_own_loader_may_leave_tensors_out_and_that_is_said(build, caplog):
    load_complete(build(OldStyle), (checkpoint() | {"block.mask": torch.zeros(3)}).items())
    assert "OldStyle.load_weights leaves 1 checkpoint tensor(s) out: block.mask" in caplog.text
    assert "block.mask" in caplog.text
    tensors = checkpoint() | {"block.mask": torch.zeros(3)}
    del tensors["block.v_proj.bias"]
    with pytest.raises(WeightsMismatch) as caught:
        load_complete(build(OldStyle), tensors.items())
    assert "block.qkv_proj.bias [16]: not filled by the checkpoint (12 of 16 elements)" in caught.value.details


class Inner(Block):
    def load_weights(self, weights):
        mapper = WeightsMapper(orig_to_new_stacked={f"{name}_proj": ("qkv_proj", name) for name in "qkv"})
        mapper |= WeightsMapper(orig_to_new_stacked={"gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1)})
        return AutoWeightsLoader(self).load_weights(weights, mapper=mapper)


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Inner(), Inner()


def test_children_load_themselves(build):
    tensors = {}
    for child in ("first", "second"):
        for name, tensor in checkpoint().items():
            if name.startswith("block."):
                tensors[name.replace("block", child)] = tensor
    model = build(Outer)
    load_complete(model, tensors.items())
    assert torch.equal(model.second.gate_up_proj.weight[8:], tensors["second.up_proj.weight"])


def test_skipping_is_declared(build):
    model = build()
    loader = AutoWeightsLoader(model, skip_prefixes=["mtp."], ignore_unexpected_suffixes=[".scale"])
    stream = checkpoint() | {"mtp.weight": torch.zeros(1), "embed.scale": torch.zeros(1)}
    assert "embed.weight" in loader.load_weights(stream.items())


def test_mapper_renames_in_order_and_drops_on_none():
    mapper = WeightsMapper(
        orig_to_new_regex={r"^h\.(\d+)\.": r"layers.\1."},
        orig_to_new_substr={".attention.": ".attn.", ".rotary.": None},
        orig_to_new_prefix={"transformer.": "model.", "layers.": "model.layers."},
        orig_to_new_suffix={".gamma": ".weight"},
        orig_to_new_stacked={".q.": (".qkv.", "q")},
    )
    assert mapper.map_name("h.3.attention.norm.gamma") == "model.layers.3.attn.norm.weight"
    assert mapper.map_name("transformer.rotary.freq") is None
    name = mapper.map_name("h.0.attention.q.weight")
    assert name == "model.layers.0.attn.qkv.weight"
    assert isinstance(name, ShardedName) and name.shard_id == "q"
    assert mapper.apply_list(["transformer.rotary.freq", "transformer.x"]) == ["model.x"]


def test_layers_of_other_stages_are_missing(vllm_config):
    from bestiary.nn.parallel import Group, pipeline_range, use_groups

    assert [pipeline_range(10, rank, 4) for rank in range(4)] == [(0, 2), (2, 5), (5, 8), (8, 10)]
    with use_groups(pipeline=Group(1, 2)):
        start, end, layers = make_layers(4, lambda prefix: nn.Linear(2, 2), "model.layers")
    assert (start, end) == (2, 4)
    assert [isinstance(layer, PPMissingLayer) for layer in layers] == [True, True, False, False]
    holder = nn.Module()
    holder.layers = layers
    assert is_pp_missing_parameter("layers.0.weight", holder)
    assert not is_pp_missing_parameter("layers.2.weight", holder)
    assert extract_layer_index("model.layers.7.self_attn") == 7


@pytest.mark.parametrize("given_first", [False, True])
def test_a_parameter_of_two_modules_is_one_and_may_be_filled_under_either_name(scope, given_first):
    class Owner(nn.Module):
        """Gives its parameter to a part, before or after it has registered it."""

        def __init__(self):
            super().__init__()
            bias = nn.Parameter(torch.empty(4))
            bias.kind = "shared"
            self.part = nn.Module()
            for module in (self.part, self) if given_first else (self, self.part):
                module.bias = bias

        def load_weights(self, weights):
            ((_, tensor),) = weights
            self.bias.data.copy_(tensor)
            return {"part.bias"}

    owner = Owner()
    assert owner.bias is owner.part.bias and owner.bias.is_meta and owner.bias.kind == "shared"
    materialize(owner, CPU)
    load_complete(owner, [("any", torch.arange(4.0))])
    assert owner.bias is owner.part.bias and owner.bias.tolist() == [0, 1, 2, 3]


def test_a_buffer_without_values_is_an_error():
    from bestiary.api.errors import BrokenPlugin
    from bestiary.nn.placement import materialize

    model = nn.Linear(2, 2)
    model.register_buffer("lost", torch.empty(3, device="meta"))
    with pytest.raises(BrokenPlugin, match=r"the buffer Linear\.lost has no values"):
        materialize(model, torch.device("cpu"))
