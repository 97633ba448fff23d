"""What `/v1/responses` calls input, instructions and tools, in the form that chat templates know."""

from __future__ import annotations

from typing import Any

from .schemas.responses import FunctionCallItem, FunctionOutputItem, InputMessage, ResponsesRequest


def as_messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    """The conversation: instructions first; calls in a row are one message of the assistant, with its text before."""
    messages: list[dict[str, Any]] = []
    if request.instructions is not None:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        return [*messages, {"role": "user", "content": request.input}]
    for item in request.input:
        if isinstance(item, InputMessage):
            messages.append({"role": item.role, "content": _text(item)})
        elif isinstance(item, FunctionCallItem):
            _caller(messages)["tool_calls"].append(
                {"id": item.call_id, "type": "function",
                 "function": {"name": item.name, "arguments": item.arguments}}
            )  # fmt: skip
        elif isinstance(item, FunctionOutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": item.output})
    return messages


def as_tools(request: ResponsesRequest) -> list[dict[str, Any]] | None:
    """The tools as a chat has them."""
    if request.tools is None:
        return None
    return [
        {"type": "function", "function": tool.model_dump(exclude_unset=True, exclude={"type"})}
        for tool in request.tools
    ]  # fmt: skip


def _text(message: InputMessage) -> str | list[dict[str, Any]]:
    if isinstance(message.content, str):
        return message.content
    return [{"type": "text", "text": part.text} for part in message.content]


def _caller(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The message of the assistant that a call belongs to."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", [])
    return messages[-1]
