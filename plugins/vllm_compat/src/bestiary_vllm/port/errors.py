"""The one error of porting."""

from __future__ import annotations

from typing import Any

from bestiary.api.errors import BadTarget


def not_portable(message: str, **facts: Any) -> BadTarget:
    """What was given holds no model file, to be raised."""
    return BadTarget(message, code="NOT_PORTABLE", **facts)
