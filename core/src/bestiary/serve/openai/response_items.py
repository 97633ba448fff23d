"""The items of a response while they grow, and the events that tell of it, in OpenAI's order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bestiary.api.hooks import TextDelta, ToolCallDelta

if TYPE_CHECKING:
    from .service import Call

Event = tuple[str, dict[str, Any]]
"""The name of an event, and its fields but type and sequence number."""


@dataclass(slots=True)
class Items:
    """Owned by one response. What is fed comes out as events; `documents` is all of it so far.

    One item is open at a time: reasoning, the message, a call. What belongs to another closes it.
    """

    call: Call
    documents: list[dict[str, Any]] = field(default_factory=list)
    _open: _Text | _Function | None = None

    @property
    def reasoning(self) -> str:
        """The text of all reasoning."""
        found = (each["content"] for each in self.documents if each["type"] == "reasoning")
        return "".join(part["text"] for content in found for part in content)

    def feed(self, delta: TextDelta, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        """New text, with the log-probabilities of the tokens that came with it."""
        if delta.reasoning:
            yield from self._text("reasoning")
            yield from self._grow(delta.reasoning, [])
        if delta.content or (logprobs and not delta):
            yield from self._text("message")
            yield from self._grow(delta.content, logprobs)
        for each in delta.tool_calls:
            yield from self._function(each)

    def close(self, *, complete: bool) -> Iterator[Event]:
        """Nothing more comes; an answer that is cut short leaves its last item incomplete. There is always an item."""
        if not self.documents:
            yield from self._text("message")
        yield from self._end("completed" if complete else "incomplete")

    def _end(self, status: str) -> Iterator[Event]:
        if self._open is not None:
            yield from self._open.end(status)
            self._open = None

    def _text(self, kind: str) -> Iterator[Event]:
        """Make an item of this kind the open one."""
        if isinstance(self._open, _Text) and self._open.kind == kind:
            return
        yield from self._end("completed")
        number = len(self.documents)
        self._open = _Text(kind, number, self.call.new_id("msg_" if kind == "message" else "rs_"))
        self.documents.append(self._open.document)
        yield from self._open.begin()

    def _grow(self, text: str, logprobs: list[dict[str, Any]]) -> Iterator[Event]:
        if isinstance(self._open, _Text):
            yield self._open.grow(text, logprobs)

    def _function(self, delta: ToolCallDelta) -> Iterator[Event]:
        if delta.name is not None:
            yield from self._end("completed")
            ids = self.call.new_id("fc_"), self.call.new_id("call_")
            self._open = _Function(len(self.documents), *ids, delta.name)
            self.documents.append(self._open.document)
            yield from self._open.begin()
        if delta.arguments and isinstance(self._open, _Function):
            yield self._open.grow(delta.arguments)


class _Text:
    """A message or reasoning: an item with one part of text."""

    def __init__(self, kind: str, number: int, id_: str) -> None:
        self.kind = kind
        self._name = "output_text" if kind == "message" else "reasoning_text"
        self._place = {"item_id": id_, "output_index": number, "content_index": 0}
        self.part: dict[str, Any] = {"type": self._name, "text": ""}
        self.document: dict[str, Any] = {"type": kind, "id": id_, "status": "in_progress", "content": []}
        if kind == "message":
            self.document["role"] = "assistant"
            self.part |= {"annotations": [], "logprobs": []}
        else:
            self.document["summary"] = []

    def begin(self) -> Iterator[Event]:
        yield "response.output_item.added", {"output_index": self._place["output_index"], "item": dict(self.document)}
        self.document["content"] = [self.part]
        yield "response.content_part.added", self._place | {"part": dict(self.part)}

    def grow(self, text: str, logprobs: list[dict[str, Any]]) -> Event:
        self.part["text"] += text
        fields = self._place | {"delta": text}
        if self.kind == "message":
            self.part["logprobs"] += logprobs
            fields["logprobs"] = logprobs
        return f"response.{self._name}.delta", fields

    def end(self, status: str) -> Iterator[Event]:
        done = {"text": self.part["text"]}
        if self.kind == "message":
            done["logprobs"] = self.part["logprobs"]
        yield f"response.{self._name}.done", self._place | done
        yield "response.content_part.done", self._place | {"part": self.part}
        self.document["status"] = status
        yield "response.output_item.done", {"output_index": self._place["output_index"], "item": self.document}


class _Function:
    """A call: its arguments are text that grows."""

    def __init__(self, number: int, id_: str, call_id: str, name: str) -> None:
        self._place = {"item_id": id_, "output_index": number}
        self.document: dict[str, Any] = {
            "type": "function_call", "id": id_, "call_id": call_id, "name": name, "arguments": "",
            "status": "in_progress",
        }  # fmt: skip

    def begin(self) -> Iterator[Event]:
        yield "response.output_item.added", {"output_index": self._place["output_index"], "item": dict(self.document)}

    def grow(self, arguments: str) -> Event:
        self.document["arguments"] += arguments
        return "response.function_call_arguments.delta", self._place | {"delta": arguments}

    def end(self, status: str) -> Iterator[Event]:
        done = {"name": self.document["name"], "arguments": self.document["arguments"]}
        yield "response.function_call_arguments.done", self._place | done
        self.document["status"] = status
        yield "response.output_item.done", {"output_index": self._place["output_index"], "item": self.document}
