"""A first contract for a ported architecture: a tiny configuration, as far as it can be guessed from transformers."""

from __future__ import annotations

import json
from collections.abc import Iterable

SIZES: dict[str, object] = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 6,
    "n_inner": 80,
    "n_positions": 128,
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 40,
    "shared_expert_intermediate_size": 40,
    "tie_word_embeddings": False,
}
"""Fields that many architectures have, and values for a model of a moment."""
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}

CLASS = """

class {name}(ModelContract):
    architecture = "{architecture}"

    # {about}
    config = {config}
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
    config = tiny_config(architecture)
    known = config is not None
    found = config if config is not None else {"model_type": "…", **{name: SIZES[name] for name in list(SIZES)[:8]}}
    lines = json.dumps(found, indent=4, ensure_ascii=False).replace("\n", "\n    ").replace("\n    }", ",\n    }")
    text = lines.replace(": false", ": False").replace(": true", ": True").replace(": null", ": None")
    return CLASS.format(
        name=test_class(architecture), architecture=architecture, config=text, about=KNOWN if known else UNKNOWN
    )


def tiny_config(architecture: str) -> dict[str, object] | None:
    """`config.json` of a tiny model of an architecture that transformers has; None for any other."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    types = [kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name == architecture]
    if not types:
        return None
    defaults = CONFIG_MAPPING[types[0]]().to_dict()
    small = {name: value for name, value in (SIZES | _TOKENS).items() if name in defaults}
    return {"model_type": types[0], **small}
