"""`get_forward_context`: the running step as vLLM's model files look at it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bestiary.nn.context import get_forward_context as core_context


@dataclass
class ForwardContext:
    """attn_metadata: None where no state or attention layer's own metadata is kept, as in vLLM's profiling runs, and
    model files that ask for it do without. no_compile_layers: layers by prefix, which no graph is made of."""

    attn_metadata: Any = None
    no_compile_layers: dict[str, Any] = field(default_factory=dict)
    batch_descriptor: Any = None
    is_padding: Any = None
    virtual_engine: int = 0
    additional_kwargs: dict[str, Any] = field(default_factory=dict)


def get_forward_context() -> ForwardContext:
    """What the running step is to model files. Raises `EngineError` outside one."""
    context = core_context()
    made: ForwardContext = context.attention.derived.setdefault(ForwardContext, ForwardContext())
    return made
