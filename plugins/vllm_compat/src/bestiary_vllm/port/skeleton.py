"""A first contract for a ported architecture: a tiny configuration, as far as it can be guessed from transformers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

SIZES: dict[str, object] = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 10,
    "max_position_embeddings": 128,
    "n_embd": 64,
    "n_layer": 3,
    "n_head": 8,
    "n_inner": 80,
    "n_positions": 128,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 40,
}
"""Fields that many architectures have, and values for a model of a moment."""
SWITCHES = {
    "tie_word_embeddings": "tied embeddings",
    "attention_bias": "attention bias",
    "mlp_bias": "MLP bias",
    "norm_topk_prob": "normed choice",
}
"""Fields that are off unless a checkpoint says otherwise → the variant in which they are on."""
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}

CLASS = """

class {name}(ModelContract):
    architecture = "{architecture}"

    # {about}
    config = {config}

    # What checkpoints vary in: each is a model of its own whose logits are compared.
    variants = {variants}
"""
HEAD = '''"""What the ported architectures promise: `pytest` and `bestiary certify` hold them to it."""

from bestiary.testing import ModelContract
'''
KNOWN = "A tiny model's config.json; transformers' class for it is the reference. Look over every field."
UNKNOWN = (
    "transformers has no such architecture: fill in a tiny config.json, and define `reference(self, config)`, which\n"
    "    # returns the torch module whose logits are right."
)


def test_class(architecture: str) -> str:
    """The name of its contract."""
    return f"Test{architecture}"


def contract(names: Iterable[str]) -> str:
    """The text of a module with a contract for each architecture."""
    return HEAD + "".join(_class(name) for name in names)


def _class(architecture: str) -> str:
    defaults = _defaults(architecture)
    config = tiny_config(architecture) or {"model_type": "…", **{name: SIZES[name] for name in list(SIZES)[:8]}}
    variants: dict[str, object] = {
        name: {field: True} for field, name in SWITCHES.items() if defaults.get(field) is False
    }
    rope = defaults.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        variants["another theta"] = {"rope_parameters": rope | {"rope_theta": 4 * rope["rope_theta"]}}
    return CLASS.format(
        name=test_class(architecture),
        architecture=architecture,
        config=_written(config),
        variants=_written(variants),
        about=KNOWN if defaults else UNKNOWN,
    )


def _written(values: Mapping[str, object]) -> str:
    """A dictionary as Python, a line for each key."""
    lines = [f"        {key!r}: {value!r}," for key, value in values.items()]
    return "\n".join(["{", *lines, "    }"]).replace("'", '"') if lines else "{}"


def tiny_config(architecture: str) -> dict[str, object] | None:
    """`config.json` of a tiny model of an architecture that transformers has; None for any other."""
    defaults = _defaults(architecture)
    small = {name: value for name, value in (SIZES | _TOKENS).items() if name in defaults}
    kept = {name: defaults[name] for name in SWITCHES if name in defaults}
    return {"model_type": defaults["model_type"], **small, **kept} if defaults else None


def _defaults(architecture: str) -> dict[str, object]:
    """All fields of transformers' configuration of an architecture; none where it has no such. Of several model types
    that share the class, the one whose name is most like it."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    types = [kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name == architecture]
    if not types:
        return {}
    plain = architecture.removesuffix("ForCausalLM").lower()
    best = max(types, key=lambda kind: difflib.SequenceMatcher(None, kind.replace("_", ""), plain).ratio())
    found: dict[str, object] = CONFIG_MAPPING[best]().to_dict()
    return found
