"""Published shapes of models, as their `config.json` has them; weights are random, so nothing has to be fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from json import dumps, loads
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bestiary.serve.llm import LLM

Shape = Mapping[str, Any]

SHAPES: Mapping[str, Shape] = loads(files(__package__).joinpath("shapes.json").read_text("utf-8"))


def tiny(shape: Shape) -> Shape:
    """The same architecture, small enough to try the command on a laptop."""
    small = {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    }  # fmt: skip
    experts = (
        {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32} if "num_experts" in shape else {}
    )
    return {**shape, **small, **experts}


@contextmanager
def engine(shape: Shape, **options: Any) -> Iterator[LLM]:
    """An engine with random weights of that shape, closed afterwards."""
    from bestiary.serve.llm import LLM

    with TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(dumps({**shape, "torch_dtype": "bfloat16"}), "utf-8")
        plain = {"load_format": "dummy", "skip_tokenizer_init": True, "progress": False, "enable_prefix_caching": False}
        with LLM(folder, **{**plain, **options}) as llm:
            yield llm
