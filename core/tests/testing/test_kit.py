"""The kit notices mistakes, each by the check meant for it, and says what is wrong. Models run in this process."""

import importlib
import inspect
import itertools
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bestiary.api.errors import UsageError
from bestiary.api.registry import ModelRegistry
from bestiary.testing import ContractFailure, ModelContract, support_table, write_table
from bestiary.testing.fake_site import Site
from bestiary.testing.fields import Built, Read, reads_by, what_is_not_varied
from bestiary.testing.reference import transformers_reference
from bestiary.testing.table import BEGIN, END

SOURCE = (Path(__file__).parent / "tiny.py").read_text("utf-8")
CONFIG = {
    "model_type": "tiny_decoder", "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 67, "max_position_embeddings": 96, "eps": 0.003,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}  # fmt: skip


class Attend(nn.Module):
    """The reference's layer, in plain torch."""

    def __init__(self, hidden, heads, kv_heads, eps):
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, hidden // heads
        self.norm = nn.RMSNorm(hidden, eps=eps)
        self.q = nn.Linear(hidden, hidden)
        self.k = nn.Linear(hidden, kv_heads * self.size)
        self.v = nn.Linear(hidden, kv_heads * self.size)
        self.out = nn.Linear(hidden, hidden)

    def rotated(self, x):
        half = self.size // 2
        angle = torch.arange(x.shape[-2])[:, None] / 10_000.0 ** (torch.arange(half) / half)
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def split(self, x, heads):
        return x.unflatten(-1, (heads, self.size)).transpose(1, 2)

    def forward(self, x):
        normed = self.norm(x)
        q = self.rotated(self.split(self.q(normed), self.heads))
        k = self.rotated(self.split(self.k(normed), self.kv_heads))
        v = self.split(self.v(normed), self.kv_heads)
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return x + self.out(y.transpose(1, 2).flatten(2))


class Reference(nn.Module):
    def __init__(self, config):
        super().__init__()
        hidden = config["hidden_size"]
        sizes = hidden, config["num_attention_heads"], config["num_key_value_heads"], config["eps"]
        self.embed = nn.Embedding(config["vocab_size"], hidden)
        self.layers = nn.ModuleList(Attend(*sizes) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.RMSNorm(hidden, eps=config["eps"])
        self.lm_head = nn.Linear(hidden, config["vocab_size"], bias=False)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


class TinyContract(ModelContract):
    """Of no architecture yet: each test installs one."""

    config = CONFIG
    variants = {"one key-value head": {"num_key_value_heads": 1}}

    def reference(self, config):
        return Reference(config)


numbers = itertools.count()


@pytest.fixture
def contract(tmp_path, monkeypatch):
    """`contract(old, new)`: the contract of an installed package whose model file has `new` in the place of `old`."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = []

    def install(old="", new="", **stated):
        assert old in SOURCE
        name = f"tiny_kit_{next(numbers)}"
        architecture = f"Tiny{name}ForCausalLM"
        source = SOURCE.replace(old, new, 1) if old else SOURCE
        Site(tmp_path).add(name, models={architecture: f"{name}:TinyForCausalLM"}, source=source)
        importlib.invalidate_caches()
        ModelRegistry.refresh()
        made.append(type("TestTiny", (TinyContract,), {"architecture": architecture, **stated}))
        return made[-1]

    yield install
    for each in made:
        each.teardown_class()
    ModelRegistry.refresh()


def outcomes(contract, *names):
    """Check (and parameter) → None where it holds, the failure where not, the reason where it is skipped."""
    found = {}
    for name in names or contract.checks():
        method = getattr(contract(), f"test_{name}")
        parameter = next(iter(inspect.signature(method).parameters), None)
        for value in contract.parameters()[parameter] if parameter else [None]:
            key = name if value is None else f"{name}[{value}]"
            try:
                found[key] = method(*([value] if parameter else []))
            except ContractFailure as failure:
                found[key] = failure
            except pytest.skip.Exception as skipped:
                found[key] = str(skipped)
    return found


def failures(contract, *names):
    return {name: text for name, found in outcomes(contract, *names).items() if (text := str(found)) and found and
            isinstance(found, ContractFailure)}  # fmt: skip


def test_a_right_model_passes_every_check(contract):
    found = outcomes(contract())
    skipped = {name: why for name, why in found.items() if isinstance(why, str)}
    assert {name: str(why) for name, why in found.items() if why is not None and name not in skipped} == {}
    assert set(skipped) == {
        "readme", "gguf_names", "gguf_file[F32]", "gguf_file[Q8_0]", "weights_renamed", "refused",
        "tensor_parallel[EP 2]",
    }  # fmt: skip
    assert all(why.startswith("does not apply: ") for why in skipped.values())
    assert {"logits[base]", "logits[one key-value head]", "pipeline", "preempted", "deterministic"} < set(found)


LOAD = "return AutoWeightsLoader(self).load_weights(weights)"

MISTAKES = {
    "a wrong scale": ("scale=head_dim**-0.5", "scale=0.3", "logits", ["position 0 agrees", "layers.0.out"]),
    "keys and values exchanged": ('["q", "k", "v"]', '["q", "v", "k"]', "logits", ["layers.0"]),
    "a forgotten residual": ("return hidden_states + output", "return output", "logits", ["position 0 is wrong"]),
    "a forgotten norm": ("return self.norm(hidden_states)", "return hidden_states", "logits", ["not the reference's"]),
    "another epsilon": ("eps=config.eps)\n        self.lm_head", "eps=1e-5)\n        self.lm_head", "logits",
                        [": norm"]),
    "a scaled head": ("LogitsProcessor(config.vocab_size)", "LogitsProcessor(config.vocab_size, scale=2.0)", "logits",
                      ["all logits are 2 times"]),
    "positions of the batch": ("self.rotary(positions,", "self.rotary(torch.arange(len(positions)) % 40,", "batched",
                               ["answers depend on the batch", "use `positions`"]),
    "a last layer left out": ("self.start : self.end]", "self.start : self.end - 1]", "logits",
                              ["the last that agrees"]),
    "stages that ignore their start": ("self.layers[self.start : self.end]", "self.layers[0:1]", "pipeline", []),
    "a stage that hands nothing on": ("if not get_pp_group().is_last_rank", "if False", "pipeline",
                                      ["hands nothing on", "is_last_rank"]),
    "other tensors than promised": ('return IntermediateTensors({"hidden_states": torch',
                                    'return IntermediateTensors({"hidden": torch', "pipeline", ["does not describe"]),
    "a stage's memory of another type": ("dtype=dtype, ", "", "pipeline", ["asked for were torch.float64 on meta"]),
    "embeddings that are not those of forward": ("return self.embed(input_ids)", "return 2 * self.embed(input_ids)",
                                                 "logits", []),
    "embeddings that are not used": ("if inputs_embeds is None else inputs_embeds", "if True else None", "embeddings",
                                     ["could not be made"]),
    "embeddings used in another way": ("else inputs_embeds", "else 1.01 * inputs_embeds", "embeddings",
                                       ["embeddings in the place of ids", "embed_input_ids"]),
    "a fusion of a layer that is not there": ('{"qkv": ["q", "k", "v"]}', '{"qkv": ["q", "k", "v"], "up": ["a"]}',
                                              "named_layers", ["no layer is called up"]),
    "a fusion of another number": ('{"qkv": ["q", "k", "v"]}', '{"qkv": ["q", "k"]}', "named_layers",
                                   ["qkv is not 2 projections in one"]),
    "the embedding called the head": ('"embed": "input_embeddings"', '"embed": "output_embeddings"', "named_layers",
                                      ["embed is no ParallelLMHead", "names no input_embeddings"]),
    "an embedding of another name": ('{"embed": "in', '{"embed_tokens": "in', "named_layers", ["embed_tokens is no"]),
    "experts that are none": ("SupportsPP):", "SupportsPP, __import__('bestiary.api').api.MixtureOfExperts):",
                              "named_layers",
                              ["has no layer of experts"]),
    "stages that are not claimed": ("SupportsLoRA, SupportsPP)", "SupportsLoRA)", "members",
                                    ["make_empty_intermediate_tensors is written, but supports_pp is not claimed"]),
    "a loader that passes over": (LOAD, LOAD.replace("weights)", "w for w in weights if 'nobody' not in w[0])"),
                                  "weights_unknown", ["leaves 1 checkpoint tensor(s) out: nobody_knows.weight"]),
    "a loader that makes up": (LOAD, "found = dict(weights)\n        found.setdefault('norm.weight', torch.ones(32))\n"
                               "        return AutoWeightsLoader(self).load_weights(found.items())", "weights_missing",
                               ["norm.weight [32]"]),
    "a loader that depends on the order": (
        LOAD, "weights = list(weights)\n"
        "        self.scale = 1 + sum(at * len(name) for at, (name, _) in enumerate(weights)) % 89 / 100\n"
        "        return AutoWeightsLoader(self).load_weights(iter(weights))", "weights_sharded",
        ["in 4 files gives other logits"]),
    "a product past the layer": ("output, _ = self.out(self.attn(q, k, v))",
                                 "output = nn.functional.linear(self.attn(q, k, v), self.out.weight, self.out.bias)",
                                 "quantization", ["could not be made", "in forward"]),
    "heads of all ranks": ("self.qkv.num_heads", "config.num_attention_heads", "tensor_parallel",
                           ["cannot be computed by ranks", "heads counted without dividing"]),
    "key-value heads that are never copied": ("=self.qkv.num_kv_heads", "=self.qkv.num_heads // 2", "tensor_parallel",
                                              ["(TP 4)"]),
    "a sum over ranks that nobody makes": ("RowParallelLinear(config.hidden_size, config.hidden_size)",
                                           "RowParallelLinear(config.hidden_size, config.hidden_size, "
                                           "reduce_results=False)", "tensor_parallel", ["do not equal one process"]),
    "a rank that goes its own way": ("return self.norm(hidden_states)",
                                     "return self.norm(hidden_states[self.embed.tp_rank :])",
                                     "tensor_parallel", ["that failed by themselves", "returned what it must not"]),
    "a product that no adapter can change": (
        "output, _ = self.out(self.attn(q, k, v))",
        "output = nn.functional.linear(self.attn(q, k, v), self.out.weight, self.out.bias)", "lora",
        ["an adapter does not equal", "never its weight"]),
    "a layer called with other rows": ("self.out(self.attn(q, k, v))",
                                       "self.out(self.attn(q, k, v).repeat(2, 1))[0][: len(q)], None", "lora",
                                       ["layers.0.out computes 252 rows where the step has 126"]),
    "a number too narrow": ("return hidden_states + output", "return (hidden_states + output).half().float()", "logits",
                            ["layers.0 "]),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_by_the_check_meant_for_it(mistake, contract):
    old, new, check, said = MISTAKES[mistake]
    broken = contract(old, new)
    if check == "weights_sharded":
        _scale_logits(broken)
    found = failures(broken, check)
    assert found, mistake
    for text in found.values():
        assert all(part in text for part in said), text
        assert "look: " in text


def _scale_logits(broken):
    """Makes the logits depend on what the loader noted."""
    module = importlib.import_module(ModelRegistry.resolve([broken.architecture]).__module__)
    module.TinyForCausalLM.compute_logits = lambda self, hidden_states: (
        self.scale * self.logits_processor(self.lm_head, hidden_states)
    )


def test_a_loader_that_drops_part_of_a_tensor_is_found(contract):
    half = "return AutoWeightsLoader(self).load_weights((n, w[:67] if n == 'embed.weight' else w) for n, w in weights)"
    longer = type("Longer", (Reference,), {"__init__": _with_spare_rows})
    found = failures(contract(LOAD, half, reference=lambda self, config: longer(config)), "save_load", "logits")
    assert "embed.weight: 96 of 2240 numbers do not arrive" in found["save_load"]
    assert set(found) == {"save_load"}


def _with_spare_rows(self, config):
    Reference.__init__(self, config)
    self.embed = nn.Embedding(config["vocab_size"] + 3, config["hidden_size"])


def test_other_names_are_loaded(contract):
    stated = {"other_names": {"those of the whole model": ("^", "model.")}}
    assert "model.embed.weight" in failures(contract(**stated), "weights_renamed")["weights_renamed"]
    renaming = LOAD.replace("(weights)", "((name.removeprefix('model.'), weight) for name, weight in weights)")
    assert outcomes(contract(LOAD, renaming, **stated), "weights_renamed") == {"weights_renamed": None}
    found = failures(contract(other_names={"none": ("^transformer", "")}), "weights_renamed")
    assert "fits no tensor" in found["weights_renamed"]


class Whole(nn.Module):
    """The reference below a name that only an own loader knows."""

    def __init__(self, config):
        super().__init__()
        self.model = Reference(config)

    def forward(self, input_ids):
        return self.model(input_ids)


def test_layers_whose_names_only_an_own_loader_knows_are_found(contract):
    renaming = LOAD.replace("(weights)", "((name.removeprefix('model.'), weight) for name, weight in weights)")
    found = failures(contract(LOAD, renaming, reference=lambda self, config: Whole(config)), "logits", "lora")
    assert set(found) == {"lora"}
    assert "8 layer(s) have no weight in the checkpoint by whose name" in found["lora"]
    assert "an own load_weights renames tensors" in found["lora"]


def test_a_tensor_may_be_declared_optional(contract):
    old, new, *_ = MISTAKES["a loader that makes up"]
    assert failures(contract(old, new, optional_weights=("norm.weight",)), "weights_missing") == {}


def test_bounds_are_held(contract):
    found = failures(contract(bf16_bound=1e-5, quantization_bounds={"int8": 1e-5}), "bf16", "quantization")
    assert "allowed: 1e-05" in found["bf16"]
    assert "int8: " in found["quantization"]


HIDING = [
    ({"num_hidden_layers": 1}, "too small to show layers in a wrong order"),
    ({"vocab_size": 16}, "too small to show a wrong choice of tokens"),
    ({"max_position_embeddings": 48}, "shorter than prompt and answer together"),
    ({"max_position_embeddings": 4096}, "its end does not show"),
    ({"sliding_window": 64}, "never cuts anything off"),
    ({"num_local_experts": 2, "num_experts_per_tok": 2}, "a wrong router does not show"),
    ({"intermediate_size": 32}, "the wrong way round"),
]


@pytest.mark.parametrize(("fields", "said"), HIDING)
def test_a_configuration_that_hides_mistakes_is_refused(fields, said, contract):
    found = failures(contract(config=CONFIG | fields), "shows_mistakes")
    assert said in found["shows_mistakes"]


class Fields(SimpleNamespace):
    """A configuration object with defaults."""

    def __init__(self, **given):
        super().__init__(
            **{"hidden_size": 7, "num_attention_heads": 1, "eps": 0.1, "heads": 2, "a": 1, "b": 1, "head_dim": 9}
            | given
        )


def test_the_fields_that_a_package_reads_are_known():
    config = Fields()
    ours = {"__name__": "some_plugin.model", "config": config}
    with reads_by("some_plugin", config) as read:
        exec("\nconfig.eps, getattr(config, 'windows', None)", ours)  # noqa: S102
        assert config.heads == 2  # read by someone else
        assert isinstance(config, Fields)
    assert read == {Read("eps", 2), Read("windows", 2)}
    assert type(config) is Fields


@pytest.mark.parametrize(
    ("models", "said"),
    [
        ([{"eps": 0.2}, {"eps": 0.1}], None),
        ([{}, {"eps": 0.1}], "eps = 0.1 in every variant"),
        ([{"eps": 0.2, "a": 3, "b": 3}, {"a": 4, "b": 4}], "a and b are the same number"),
        ([{"eps": 0.2, "a": 3, "b": 3}, {"a": 3, "b": 4}], None),
        ([{"eps": 0.2, "c": 3}], "c is given in every variant"),
        ([{"eps": 0.2, "c": 3}, {}], None),
        ([{"eps": 0.2, "head_dim": 4, "num_attention_heads": 2, "hidden_size": 8}], "the wrong way round"),
        ([{"eps": 0.2, "head_dim": 5, "num_attention_heads": 2, "hidden_size": 8}], None),
    ],
)
def test_a_field_that_no_variant_changes_is_refused(models, said):
    read = frozenset(Read(name, 3) for fields in models for name in fields)
    found = list(what_is_not_varied(Fields(), [Built(fields, read) for fields in models]))
    assert len(found) == (said is not None)
    assert all(said in line for line in found)


def test_a_line_counts_only_where_it_is_come_to():
    here, there = Read("eps", 3), Read("eps", 8)
    models = [Built({"eps": 0.1}, frozenset({here, there})), Built({"eps": 0.2}, frozenset({here}))]
    assert list(what_is_not_varied(Fields(), models)) == [
        "line 8: eps = 0.1 in every variant: its default written into the model file would not show"
    ]
    assert list(what_is_not_varied(Fields(), [*models, Built({"eps": 0.2}, frozenset({there}))])) == []
    assert list(what_is_not_varied(Fields(), [*models, Built({"eps": 0.2})])) == []  # of a contract beside this one


def test_a_configuration_that_is_not_refused_is_found(contract):
    wrong = {"no layers": {"num_hidden_layers": 0}, "no half heads": {"num_attention_heads": 3}}
    found = failures(contract(refused=wrong | {"nobody reads this": {"colour": "blue"}}), "refused")["refused"]
    assert "nobody reads this: built without a word" in found


def test_a_weight_without_effect_must_be_explained(contract):
    class Idle(Reference):
        def __init__(self, config):
            super().__init__(config)
            self.idle = nn.Linear(4, 4)

    stated = {"reference": lambda self, config: Idle(config)}
    found = failures(contract(**stated), "shows_mistakes")["shows_mistakes"]
    assert "idle.weight: changing it moves the reference's logits by 0 only" in found
    explained = contract(**stated, without_effect={"idle.*": "kept for files written long ago"})
    assert failures(explained, "shows_mistakes") == {}


def test_a_variant_that_nobody_reads_is_a_mistake_and_one_without_effect_is_none(contract):
    said = {"misspelt": {"num_key_values_heads": 1}, "as before": {"num_key_value_heads": 2}}
    found = failures(contract(variants=said), "shows_mistakes")["shows_mistakes"]
    assert "variants['misspelt']: changes nothing; nobody knows a field num_key_values_heads" in found
    assert "as before" not in found


def test_the_reference_is_of_the_model_type_whatever_the_architecture_is_called():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "llama", "vocab_size": 8, **sizes}
    for name in ("Unheard", "GPTNeoXForCausalLM", "LlamaForCausalLM"):
        assert type(transformers_reference(config, name)).__name__ == "LlamaForCausalLM"
    assert type(transformers_reference(config, "LlamaModel")).__name__ == "LlamaModel"
    with pytest.raises(UsageError, match="has no model_type"):
        transformers_reference(sizes, "LlamaForCausalLM")


def test_logits_that_hardly_differ_are_refused(contract):
    class Flat(Reference):
        def forward(self, input_ids):
            return super().forward(input_ids) / 100

    found = failures(contract(reference=lambda self, config: Flat(config)), "shows_mistakes")["shows_mistakes"]
    assert "larger weights show more" in found


def test_a_reference_must_answer_with_finite_logits(contract):
    class Broken(Reference):
        def forward(self, input_ids):
            return super().forward(input_ids) / 0

    found = failures(contract(reference=lambda self, config: Broken(config)), "greedy")
    assert "the reference's logits are not finite" in found["greedy[base]"]


def test_a_reference_must_answer_with_logits(contract):
    stated = {"reference": lambda self, config: nn.Embedding(8, 8).requires_grad_(False)}
    assert failures(contract(**stated), "logits")  # logits of another width
    stated = {"reference": lambda self, config: nn.Flatten()}
    assert "does not answer with logits" in failures(contract(**stated), "logits")["logits[base]"]


def test_an_error_of_the_model_names_the_author_s_line(contract):
    found = failures(contract("return hidden_states + output", "return hidden_states @ output"), "logits")
    assert "the check could not be made: RuntimeError: mat1 and mat2" in found["logits[base]"]
    assert re.search(r"where: +tiny_kit_\d+.py:\d+ in forward", found["logits[base]"])


IMPORTS = {
    "prints": ("print('hello from here')", "prints 'hello from here'"),
    "starts a thread": ("import threading, time; threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
                        "starts 1 thread(s)"),
    "writes a file": ("open('left_behind', 'w').close()", "writes the file left_behind"),
    "connects": ("import socket; socket.socket().connect_ex(('127.0.0.1', 9))", "uses the network"),
    "starts a process": ("import subprocess; subprocess.run(['true'])", "starts a process"),
    "allocates": ("KEPT = torch.ones(16 << 20)", "allocates 6"),
    "loads the engine": ("import bestiary.engine.plan", "loads bestiary.engine"),
}  # fmt: skip


def test_everything_an_import_does_is_said(contract):
    """All of them in one module, since each child process costs seconds."""
    lines = "\n".join(line for line, _ in IMPORTS.values())
    found = failures(contract("class TinyLayer", f"{lines}\n\n\nclass TinyLayer"), "clean_import")["clean_import"]
    assert [name for name, (_, said) in IMPORTS.items() if said not in found] == []


def test_a_missing_member_and_an_unbacked_claim_are_found(contract):
    found = failures(contract("def make_empty_intermediate_tensors", "def make_nothing"), "members", "found")
    assert "make_empty_intermediate_tensors is missing" in found["members"]


def test_an_architecture_registered_by_hand_is_not_found(contract):
    made = contract()
    ModelRegistry.register_model("TinyByHandForCausalLM", ModelRegistry.resolve([made.architecture]))
    by_hand = type("TestByHand", (TinyContract,), {"architecture": "TinyByHandForCausalLM"})
    found = failures(by_hand, "found")["found"]
    assert "no installed distribution declares TinyByHandForCausalLM" in found
    assert "pip install -e ." in found


def test_without_a_config_only_what_is_installed_is_checked(contract):
    found = outcomes(contract(config=None), *(set(ModelContract.checks()) - {"clean_import"}))
    made = {name for name, why in found.items() if why is None}
    assert made | {"clean_import"} == ModelContract.static_checks
    assert found["logits[base]"] == "not checked: the contract has no config"


def test_a_given_up_check_is_skipped_with_its_reason(contract):
    made = contract(given_up={"bf16": "computes in integers throughout"})
    assert outcomes(made, "bf16") == {"bf16": "given up: computes in integers throughout"}
    table = support_table([made])
    assert "| [1] |" in table
    assert "- [1] computes in integers throughout" in table


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"given_up": {"bf16": "no"}}, "needs a reason of at least 10 characters"),
        ({"given_up": {"bf61": "it does not work at all"}}, "did you mean bf16?"),
        ({"given_up": ["bf16"]}, "given_up: must be a mapping"),
        ({"varients": {}}, "did you mean variants?"),
        ({"variants": {"base": {}}}, "under another name than 'base'"),
        ({"variants": {"wide": 3}}, "must be a mapping of changed fields"),
        ({"config": "config.json"}, "config: must be a mapping"),
        ({"bf16_bound": 5}, "between 0 and 1"),
        ({"gguf_variants": ("wide",)}, "'wide' is no variant"),
    ],
)
def test_a_contract_that_states_nonsense_is_an_error_where_it_is_defined(stated, said):
    with pytest.raises(UsageError) as caught:
        type("TestNonsense", (ModelContract,), {"architecture": "NonsenseForCausalLM", **stated})
    assert said in str(caught.value)


def test_what_programs_read():
    assert ModelContract.is_contract is True
    assert ModelContract.static_checks == {"found", "clean_import", "members"}
    assert list(ModelContract.checks())[:3] == ["found", "clean_import", "members"]
    assert all(len(summary) > 20 and not summary.endswith(".") for summary in ModelContract.checks().values())


def test_contracts_are_collected_by_pytest_with_their_variants_and_bases_are_not(tmp_path, contract, monkeypatch):
    """pytest itself, on a module that imports everything: in this process, collecting only."""
    made = contract()
    (tmp_path / "test_collected.py").write_text(
        "from bestiary.testing import ModelContract\n"
        "class TestUnfinished(ModelContract):\n    pass\n"
        f"class TestOne(TestUnfinished):\n    architecture = {made.architecture!r}\n"
        f"    config = {CONFIG!r}\n    variants = {{'one head': {{'num_key_value_heads': 1}}}}\n"
        "Another = TestOne\n"
    )
    seen = []

    class Watch:
        def pytest_collection_modifyitems(self, items):
            seen.extend(item.nodeid.partition("::")[2] for item in items)

    monkeypatch.chdir(tmp_path)
    arguments = ["--collect-only", "-qq", "-c", "/dev/null", "--rootdir", str(tmp_path), "-p", "no:cacheprovider"]
    assert pytest.main([*arguments, "test_collected.py"], plugins=[Watch()]) == 0
    assert {"TestOne::test_logits[base]", "TestOne::test_logits[one head]", "TestOne::test_found"} < set(seen)
    assert all(name.startswith("TestOne::") for name in seen)


def test_the_table_is_written_between_its_markers(tmp_path, contract):
    table = support_table([contract()])
    readme = tmp_path / "README.md"
    readme.write_text(f"# One\n\n{BEGIN}\nold\n{END}\n\nmore\n")
    assert write_table(readme, table) is True
    assert write_table(readme, table) is False
    assert readme.read_text() == f"# One\n\n{BEGIN}\n{table}\n{END}\n\nmore\n"
    for text in ("nothing", f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}"):
        readme.write_text(text)
        with pytest.raises(UsageError):
            write_table(readme, table)


def test_a_readme_whose_table_is_not_the_contracts_is_found(tmp_path, contract, monkeypatch):
    made = contract()
    source = tmp_path / "project/contract_of_tiny.py"
    source.parent.mkdir()
    source.write_text(
        "from bestiary.testing import ModelContract\n"
        f"class TestIt(ModelContract):\n    architecture = {made.architecture!r}\n    config = {CONFIG!r}\n"
    )
    (source.parent / "pyproject.toml").write_text("[project]\nname = 'tiny'\n")
    readme = source.parent / "README.md"
    monkeypatch.syspath_prepend(source.parent)
    cls = importlib.import_module("contract_of_tiny").TestIt
    assert "no source folder" in outcomes(cls, "readme")["readme"]
    readme.write_text("nothing")
    assert "has no lines" in outcomes(cls, "readme")["readme"]
    readme.write_text(f"{BEGIN}\nsomething else\n{END}\n")
    assert "certify . --write-readme" in failures(cls, "readme")["readme"]
    write_table(readme, support_table([cls]))
    assert outcomes(cls, "readme") == {"readme": None}


def test_loading_says_nothing_beside_the_failure(contract, caplog):
    old, new, *_ = MISTAKES["a loader that passes over"]
    with caplog.at_level(logging.WARNING, "bestiary"):
        failures(contract(old, new), "weights_unknown", "weights_missing")
    assert [record for record in caplog.records if "leaves" in record.getMessage()] == []
