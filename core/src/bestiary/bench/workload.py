"""What is measured: fixed token ids, drawn by a seed, so that every run and every runtime computes the same."""

from __future__ import annotations

import random
from dataclasses import dataclass

from bestiary.api.errors import UsageError


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts of random ids below `vocab_size`. The same arguments give the same ids, on every machine."""

    vocab_size: int
    seed: int = 0

    def prompt(self, length: int, number: int) -> list[int]:
        """The `number`-th prompt of `length` tokens; different numbers share no prefix worth speaking of."""
        chosen = random.Random(f"{self.seed}/{number}/{length}")
        return [chosen.randrange(self.vocab_size) for _ in range(length)]

    def requests(self, count: int, shortest: int, longest: int) -> list[list[int]]:
        """`count` prompts whose lengths are uniform in ``shortest … longest``."""
        if not 1 <= shortest <= longest:
            raise UsageError("prompt lengths are a range", field="input-len", value=f"{shortest}:{longest}")
        chosen = random.Random(f"{self.seed}/lengths")
        return [self.prompt(chosen.randint(shortest, longest), 1000 + number) for number in range(count)]
