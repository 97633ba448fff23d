"""What all clients are asked: the same conversation, the same tool, the same form of an answer."""

from __future__ import annotations

TEXT = "Name a beast."
MESSAGES = [{"role": "user", "content": TEXT}]
GREEDY = {"temperature": 0.0, "max_tokens": 24}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome"]},
        "warm": {"type": "boolean"},
        "degrees": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["city", "warm", "degrees"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "description": "The weather in a city.", "parameters": SCHEMA, "strict": True}
TOOL = {"type": "function", "function": FUNCTION}
ROOM = 600
"""Tokens for an answer in a form: a model of noise puts much space between its words."""


def check_weather(found: dict[str, object]) -> None:
    """Whether it is what SCHEMA describes."""
    assert set(found) == set(SCHEMA["required"])
    assert found["city"] in ("Paris", "Rome")
    assert isinstance(found["warm"], bool)
    assert type(found["degrees"]) is int and 0 <= found["degrees"] <= 99
