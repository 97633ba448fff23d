"""Conformance: every missing or wrong member is found, on classes and instances, beside `torch.nn.Module`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from bestiary.api import conformance, protocols
from bestiary.api.conformance import ModelInfo, capabilities, check, problems_of, require
from bestiary.api.errors import InvalidModel
from bestiary.api.protocols import MARKERS, SupportsLoRA, SupportsPP, VllmModelForTextGeneration


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity() for _ in range(12)])

    def make_empty_intermediate_tensors(self, batch_size: int, dtype: Any, device: Any) -> None:
        return None


class Good(nn.Module, SupportsLoRA, SupportsPP, protocols.SupportsEagle3):
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.model = Inner()
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    def embed_input_ids(self, input_ids: Any) -> Any:
        return input_ids

    def forward(self, input_ids: Any, positions: Any, intermediate_tensors: Any = None, **rest: Any) -> Any:
        return input_ids

    def compute_logits(self, hidden_states: Any) -> Any:
        return hidden_states


class Empty(nn.Module, VllmModelForTextGeneration, SupportsLoRA, SupportsPP):
    pass


def names(subject: object) -> set[str]:
    return {f"{problem.protocol}.{problem.member}" for problem in problems_of(subject)}


def test_a_good_class_and_its_instance() -> None:
    model = Good(vllm_config=None)
    assert problems_of(Good) == []
    for protocol in (VllmModelForTextGeneration, SupportsLoRA, SupportsPP, protocols.SupportsEagle3):
        assert check(Good, protocol) == check(model, protocol) == []
    assert model(3, 4) == 3
    assert isinstance(model, SupportsLoRA)
    assert require(Good) is Good


def test_protocols_add_nothing_to_instances() -> None:
    assert Good.__call__ is nn.Module.__call__
    assert Good.__init__ is Good.__dict__["__init__"]
    assert set(vars(Good(vllm_config=None))) - set(vars(nn.Module())) == {"make_empty_intermediate_tensors"}


def test_every_missing_member_is_listed_with_its_signature() -> None:
    assert names(Empty) == {
        "VllmModel.__init__",
        "VllmModel.embed_input_ids",
        "VllmModel.forward",
        "VllmModelForTextGeneration.compute_logits",
        "SupportsLoRA.packed_modules_mapping",
        "SupportsPP.make_empty_intermediate_tensors",
        "SupportsPP.forward",
    }
    with pytest.raises(InvalidModel) as raised:
        require(Empty, origin="bad-plugin 0.1")
    text = str(raised.value)
    assert raised.value.exit_code == 3
    assert "bad-plugin 0.1" in text
    assert 'def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None' in text
    assert "packed_modules_mapping: dict[str, list[str]]" in text
    assert "make_empty_intermediate_tensors(self, batch_size: int, dtype: torch.dtype, device: torch.device)" in text


@pytest.mark.parametrize(
    ("forward", "what"),
    [
        (lambda self, input_ids: None, "does not accept positions= by name"),
        (lambda self, ids, positions, **kwargs: None, "requires ids"),
        (lambda self, input_ids, positions, cache: None, "requires cache"),
        (lambda self, input_ids, positions, /: None, "does not accept input_ids= by name"),
        (7, "is int, not a method"),
    ],
)
def test_wrong_signatures(forward: Any, what: str) -> None:
    cls = type("Wrong", (Good,), {"forward": forward})
    assert any(what in str(problem) and problem.member == "forward" for problem in problems_of(cls))


def test_a_constructor_must_take_the_configuration_and_a_prefix_with_a_default() -> None:
    def constructor(self: Any, vllm_config: Any, prefix: str) -> None: ...

    def other(self: Any, config: Any) -> None: ...

    assert "prefix needs a default" in str(problems_of(type("A", (Good,), {"__init__": constructor}))[0])
    found = [problem.what for problem in problems_of(type("B", (Good,), {"__init__": other}))]
    assert "does not accept vllm_config= by name" in found
    assert "requires config, which callers do not pass" in found


def test_members_assigned_by_a_helper_of_the_constructor_count() -> None:
    class Experts(Good, protocols.MixtureOfExperts):
        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self.set_moe_parameters()

        def set_moe_parameters(self) -> None:
            self.moe_layers: list[Any] = []
            self.num_moe_layers = 4
            self.num_logical_experts = 8

    class Forgetful(Good):
        is_mixture_of_experts = True

    assert problems_of(Experts) == []
    model = Experts(vllm_config=None)
    assert conformance.is_mixture_of_experts(model)
    model.update_physical_experts_metadata(10, 5)
    assert (model.num_redundant_experts, model.num_local_physical_experts) == (2, 5)
    assert {"moe_layers", "num_moe_layers", "num_logical_experts"} <= {each.member for each in problems_of(Forgetful)}


def test_the_experts_of_a_model_are_found_and_counted() -> None:
    class Layer:
        is_moe_layer = True
        placement = SimpleNamespace(num_logical=8, num_physical=10, num_local=5, num_redundant=2)

    class Model(Good, protocols.MixtureOfExperts):
        def modules(self) -> list[Any]:
            return [self, Layer(), Layer()]

    assert problems_of(Model) == []
    model = Model(vllm_config=None)
    assert (model.num_moe_layers, model.num_logical_experts, model.num_redundant_experts) == (2, 8, 2)
    model.num_moe_layers = 3
    assert model.num_moe_layers == 3
    assert problems_of(type("Dense", (Model,), {"modules": lambda self: []})) == []


def test_a_property_that_raises_is_reported_never_raised() -> None:
    class Raising(Good):
        @property
        def packed_modules_mapping(self) -> Any:
            raise RuntimeError("no mapping today")

        @property
        def compute_logits(self) -> Any:
            raise KeyError("logits")

    found = [str(problem) for problem in check(Raising(vllm_config=None), SupportsLoRA)]
    assert len(found) == 1
    assert "raises RuntimeError: no mapping today" in found[0]
    found = [str(problem) for problem in check(Raising(vllm_config=None), VllmModelForTextGeneration)]
    assert "raises KeyError" in found[0]
    assert not conformance.supports_lora(Raising(vllm_config=None))


@pytest.mark.parametrize("value", [["q_proj"], {"qkv": "q"}, {1: ["q"]}, None])
def test_values_of_the_wrong_kind(value: Any) -> None:
    assert "SupportsLoRA.packed_modules_mapping" in names(type("Wrong", (Good,), {"packed_modules_mapping": value}))


def test_a_claim_may_be_withdrawn_and_may_be_made_without_the_base_class() -> None:
    withdrawn = type("Withdrawn", (Good,), {"supports_lora": False, "packed_modules_mapping": None})
    assert problems_of(withdrawn) == []
    assert not conformance.supports_lora(withdrawn)

    class Plain(nn.Module):
        supports_pp = True

    assert "SupportsPP.make_empty_intermediate_tensors" in names(Plain)


@pytest.mark.parametrize("subject", [lambda: None, 3, "Good", None])
def test_what_is_no_class(subject: object) -> None:
    assert [problem.member for problem in problems_of(subject)] == ["class"]
    with pytest.raises(InvalidModel):
        require(subject)


def test_an_instance_is_no_class() -> None:
    assert "an instance of Good" in problems_of(Good(vllm_config=None))[0].what


def test_eagle3_defaults_reach_the_inner_model() -> None:
    model = Good(vllm_config=None)
    assert model.get_eagle3_default_aux_hidden_state_layers() == (2, 6, 9)
    model.set_aux_hidden_state_layers((1, 2))
    assert model.model.aux_hidden_state_layers == (1, 2)


class Embedder(Good, protocols.VllmModelForPooling):
    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config)
        self.pooler = nn.Identity()


class CrossEncoder(Embedder, protocols.SupportsCrossEncoding):
    compute_logits = None


class Draft(Good, protocols.IsDraftModel):
    pass


class Wrapped(Good, protocols.IsTransformersBacked):
    pass


class Seeing(Good, protocols.SupportsMultiModal):
    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return None

    def embed_multimodal(self, **kwargs: object) -> Any:
        return ()

    def get_language_model(self) -> Any:
        return self.model

    def embed_input_ids(
        self, input_ids: Any, multimodal_embeddings: Any = None, *, is_multimodal: Any = None, **rest: Any
    ) -> Any:
        return input_ids


@pytest.mark.parametrize(
    ("cls", "categories"),
    [
        (Good, ("text_generation",)),
        (Embedder, ("text_generation", "embedding")),
        (CrossEncoder, ("cross_encoder",)),
        (Draft, ("speculative_decoding",)),
        (Wrapped, ("text_generation", "transformers_backed")),
        (Seeing, ("text_generation", "multimodal")),
    ],
)
def test_categories_follow_from_what_a_class_is(cls: type, categories: tuple[str, ...]) -> None:
    assert problems_of(cls) == []
    info = capabilities(cls, "Arch")
    assert info.categories == categories
    assert info.lora
    assert info.pp
    assert info.multimodal == (cls is Seeing)
    assert ModelInfo.from_dict(info.as_dict()) == info


def test_every_marker_names_its_protocol_and_every_protocol_its_marker() -> None:
    for marker, protocol in MARKERS.items():
        assert getattr(protocol, marker) is True
    declared = {one for one in vars(protocols).values() if getattr(one, "_is_protocol", False)}
    ours = {one for one in declared if one.__module__ == protocols.__name__}
    assert ours - set(MARKERS.values()) == {protocols.VllmModel, VllmModelForTextGeneration}


@pytest.mark.parametrize("change", [{"lora": "yes"}, {"module": 3}, {"extra": True}])
def test_model_info_is_read_strictly(change: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)):
        ModelInfo.from_dict(capabilities(Good).as_dict() | change)
