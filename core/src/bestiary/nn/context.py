"""The forward context: what is ambient during one forward pass. Attention (and state) layers read it,
and what adds adapters to a product.

It has one setter, a context manager that refuses nesting, held by the engine's runner; it holds for the thread that
entered it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bestiary.api.errors import EngineError

if TYPE_CHECKING:
    from torch import Tensor

    from .attention.metadata import AttentionMetadata
    from .lora.rows import SlotRows


@dataclass(frozen=True, slots=True)
class ForwardContext:
    """One step, as layers see it.

    Attributes:
        attention: how the flat token batch falls into sequences, and where their KV lies.
        kv_caches: layer name → that layer's cache, whatever form its backend gave it.
        lora: which adapter slot each row belongs to: of the tokens in `forward`, of the rows whose logits are wanted in
            `compute_logits`, of the prompts that end in a `pooler`. None where no row has an adapter.
        states: layer name → what that layer keeps of a sequence whatever its length, ``[rows, *shape]`` each.
    """

    attention: AttentionMetadata
    kv_caches: Mapping[str, object]
    lora: SlotRows | None = None
    states: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)


_current: ContextVar[ForwardContext | None] = ContextVar("forward_context", default=None)


def get_forward_context() -> ForwardContext:
    """The step being run. Raises `EngineError` outside one."""
    current = _current.get()
    if current is None:
        raise EngineError("no forward pass is running: attention layers are called through the engine's runner")
    return current


def get_forward_context_or_none() -> ForwardContext | None:
    return _current.get()


@contextmanager
def forward_context(context: ForwardContext) -> Iterator[None]:
    """Run one forward pass under `context`; refuses nesting."""
    if _current.get() is not None:
        raise EngineError("a forward pass is already running; forward contexts do not nest")
    entered = _current.set(context)
    try:
        yield
    finally:
        _current.reset(entered)
