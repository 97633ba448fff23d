"""What packages may add beside models: pluggy hooks, all of one shape.

A hook returns a mapping *name → what it offers*; what it offers is ``"module:object"`` (imported when that name is
chosen) or the object itself. Listing names thus imports nothing heavy. A package offers hooks from a module that it
names in the entry-point group `bestiary_hooks`:

    [project.entry-points.bestiary_hooks]
    my_formats = "my_plugin.hooks"

    from bestiary.api.hooks import hookimpl

    @hookimpl
    def tool_call_parsers():
        return {"my_format": "my_plugin.parsers:MyToolCallParser"}

That module is imported when an engine starts and must not import torch at its top. Who loads hooks, and what happens
to a broken one: `hook_manager.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import pluggy

PROJECT = "bestiary"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

Offer: TypeAlias = "str | Any"
Offers: TypeAlias = Mapping[str, Offer]


class HookSpecs:
    """The hooks. Each takes nothing and returns `Offers`."""

    @hookspec
    def quantization_methods(self) -> Offers:  # type: ignore[empty-body]
        """`quant_method` in `config.json` → a `QuantizationConfig` class (`bestiary.nn.quant`)."""

    @hookspec
    def attention_backends(self) -> Offers:  # type: ignore[empty-body]
        """Backend name → a class that fulfils the backend protocol of `bestiary.nn.attention`."""

    @hookspec
    def op_implementations(self) -> Offers:  # type: ignore[empty-body]
        """``"op/implementation"`` (``"rms_norm/triton"``) → a function with the signature of the torch reference."""

    @hookspec
    def weight_formats(self) -> Offers:  # type: ignore[empty-body]
        """`load_format` name → a function that streams ``(name, tensor)`` pairs (`bestiary.engine.loader`)."""

    @hookspec
    def config_parsers(self) -> Offers:  # type: ignore[empty-body]
        """`model_type` → a function from `config.json`, parsed as data, to the configuration object of models."""

    @hookspec
    def tokenizers(self) -> Offers:  # type: ignore[empty-body]
        """`tokenizer_class` in `tokenizer_config.json` → a `TiktokenVocabulary`."""

    @hookspec
    def tool_call_parsers(self) -> Offers:  # type: ignore[empty-body]
        """Parser name → a `ToolFormat` (`text_formats.py`), or a class of `TextParser`s: ``cls(tools=…)``, one an
        answer, where `tools` maps the names of the request's tools to their schemas."""

    @hookspec
    def reasoning_parsers(self) -> Offers:  # type: ignore[empty-body]
        """Parser name → a `ReasoningFormat` (`text_formats.py`), or a class of `TextParser`s: ``cls(prompt=…)``, one
        an answer to that prompt, whose end may have opened the reasoning."""

    @hookspec
    def structured_output_backends(self) -> Offers:  # type: ignore[empty-body]
        """Backend name → a class of `StructuredOutputBackend`s (`bestiary.api.structured`)."""

    @hookspec
    def model_sources(self) -> Offers:  # type: ignore[empty-body]
        """Source name → a `ModelSource`."""

    @hookspec
    def step_recorders(self) -> Offers:  # type: ignore[empty-body]
        """Recorder name → a class whose instances, one an engine, are `StepRecorder`s (`bestiary.nn.graphs`)."""

    @hookspec
    def step_observers(self) -> Offers:  # type: ignore[empty-body]
        """Observer name → a class whose instances, one an engine, are `StepObserver`s."""


KERNELS = ("op_implementations", "attention_backends", "step_recorders")
"""The hooks that say how a model is computed."""
KINDS: tuple[str, ...] = tuple(name for name in vars(HookSpecs) if not name.startswith("_"))


@runtime_checkable
class ModelSource(Protocol):
    """Turns what a user calls a model into something on this machine's disk."""

    def locate(self, name: str) -> Path | None:
        """The file or directory of the model called `name`; None when the name is not this source's.

        Raises ModelError when the name is its own but cannot be had; `fix` says how to get it.
        """
        ...

    def names(self) -> Mapping[str, str]:
        """Names to offer → one line about each (licence, size, whether it is there)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TiktokenVocabulary:
    """How a model directory without a `tokenizer.json` turns text into ids, where it holds a file of ranks: data alone.

    Attributes:
        file: the file's name in the directory. A line of it is a token's bytes in base64, a space, and its rank.
        pattern: the regular expression whose matches are the words within which bytes are merged.
        special_tokens: their ids follow the ranks, in this order.
        eos_token: the special token that ends a text. stop_tokens: others that end an answer (a chat's turn, say).
        normalization: the Unicode form that text is brought into first.
        chat_template: used where the directory has none.
    """

    file: str
    pattern: str
    special_tokens: tuple[str, ...]
    eos_token: str
    stop_tokens: tuple[str, ...] = ()
    normalization: Literal["NFC", "NFKC"] | None = None
    chat_template: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """What became certain of one call: its name, in the first delta of its `index`, and more text of its arguments."""

    index: int
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What became certain since the last delta. Deltas add up: strings concatenate, and calls of one index are one.

    The sum of an answer's deltas holds whole calls. A call is never taken back: what was told of it stays, and if its
    arguments turn out to be no JSON, the text up to its closing mark follows as it stands.
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()

    def __add__(self, other: TextDelta) -> TextDelta:
        return TextDelta(
            self.content + other.content,
            self.reasoning + other.reasoning,
            _joined(self.tool_calls + other.tool_calls),
        )

    def __bool__(self) -> bool:
        return bool(self.content or self.reasoning or self.tool_calls)


def _joined(deltas: tuple[ToolCallDelta, ...]) -> tuple[ToolCallDelta, ...]:
    found: dict[int, ToolCallDelta] = {}
    for each in deltas:
        before = found.get(each.index, ToolCallDelta(each.index))
        name = each.name if before.name is None else before.name
        found[each.index] = ToolCallDelta(each.index, name, before.arguments + each.arguments)
    return tuple(found.values())


@runtime_checkable
class TextParser(Protocol):
    """Takes one answer's text apart while it arrives. The sum of all deltas does not depend on how it was cut."""

    def feed(self, chunk: str) -> TextDelta:
        """The next piece of text."""
        ...

    def finish(self) -> TextDelta:
        """No more text comes: what was held back."""
        ...


@runtime_checkable
class StepObserver(Protocol):
    """Is told of every step, after it; must be quick and change nothing."""

    def on_step(self, plan: Any, seconds: float) -> None:
        """`seconds` of wall time went into executing `plan`, a frozen `bestiary.engine.plan.StepPlan`."""
        ...
