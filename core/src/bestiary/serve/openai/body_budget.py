"""`BodyBudget`: how much of all requests' bodies is in memory at once while they are read and understood."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from bestiary.api.errors import RequestError

BUDGET_BYTES = 64 * 2**20
SMALL_BODY = 64 * 2**10
"""Bytes of a body that do not count: as many connections as there may be cannot add up to much with so few, and small
requests are answered while large ones wait."""


class BodyBudget:
    """Owns the count, and the turn of large bodies: one at a time is understood, for while one is, little else runs.

    Args:
        limit: bytes of all bodies together. most: of one, for which there is room in any case.

    Attributes:
        held: bytes that count now.
    """

    def __init__(self, most: int, limit: int = BUDGET_BYTES) -> None:
        self._limit = max(limit, most)
        self.held = 0
        self.turn = asyncio.Lock()

    @contextmanager
    def share(self) -> Iterator[Share]:
        """For one body; what it holds is free again at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.held -= share.held

    def take(self, size: int) -> None:
        """Raises `BODIES_LIMIT`."""
        if self.held + size > self._limit:
            raise RequestError(
                "too many large bodies are being sent at once", code="BODIES_LIMIT", field="body",
                limit=f"{self._limit} bytes of all together",
            )  # fmt: skip
        self.held += size


class Share:
    """What one body holds of the budget."""

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self.held = 0

    def grow(self, size: int) -> None:
        """The body has `size` bytes now. Raises `BODIES_LIMIT`."""
        more = max(0, size - SMALL_BODY) - self.held
        self._budget.take(more)
        self.held += more
