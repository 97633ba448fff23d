"""Traffic: requests of many kinds from many clients, each answer checked, and nothing counted twice or lost."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bestiary import SamplingParams
from bestiary.api.structured import StructuredOutputsParams

from .chaos import as_fields
from .client import Stream
from .golden import Golden
from .kept import Kept

COMPLETIONS = "/v1/completions"
_PROMPTS = [[40 + 7 * number + place for place in range(3 + number % 5)] for number in range(8)]
_PLAIN = {"max_tokens": 12, "ignore_eos": True, "temperature": 0}
_REGEX = "[a-f]{4,8}"
_KINDS: Sequence[tuple[str, int, Mapping[str, Any]]] = (
    ("plain", 50, {}),
    ("several", 20, {"temperature": 1.0, "seed": 7}),
    ("grammar", 10, {"structured_outputs": StructuredOutputsParams(regex=_REGEX), "ignore_eos": False}),
    ("logprobs", 10, {"logprobs": 3}),
    ("cancelled", 10, {"max_tokens": 200}),
)
"""Name, share in percent, and in what its parameters differ from the plain ones. With this seed no draw falls
where rounding decides between two tokens."""


@dataclass(frozen=True, slots=True)
class Order:
    """One request. `leaves` is after how many events its client is gone; None: never."""

    kind: str
    prompt: Sequence[int]
    params: SamplingParams
    stream: bool
    leaves: int | None = None

    def body(self) -> dict[str, Any]:
        fields = as_fields(self.params)
        form = fields.pop("structured_outputs", None)
        fields |= {} if form is None else {"structured_outputs": {"regex": form.regex}}
        return fields | {"prompt": self.prompt, "stream": self.stream, "return_token_ids": True}


def order(number: int) -> Order:
    """The same for the same number: half of them streams, and kinds by their shares."""
    draw = random.Random(number)
    name, _, changes = draw.choices(_KINDS, [share for _, share, _ in _KINDS])[0]
    several = {"n": draw.randint(2, 4)} if name == "several" else {}
    leaves = draw.randint(0, 12) if name == "cancelled" else None
    params = SamplingParams(**{**_PLAIN, **changes, **several})
    return Order(name, draw.choice(_PROMPTS), params, name == "cancelled" or draw.random() < 0.5, leaves)


@dataclass
class Tally:
    """What became of requests.

    Attributes:
        ended: by kind, those that ended as they should. statuses: of all answers. wrong: what should not be.
        seconds: of every request that was answered whole.
    """

    ended: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    tokens: int = 0

    def quantile(self, share: float) -> float:
        return sorted(self.seconds)[math.ceil(share * len(self.seconds)) - 1]

    def figures(self, elapsed: float) -> dict[str, Any]:
        """For a record."""
        rate = sum(self.ended.values()) / elapsed
        return {
            "by_kind": dict(sorted(self.ended.items())), "statuses": dict(sorted(self.statuses.items())),
            "requests_per_second": round(rate, 1), "tokens_per_second": round(self.tokens / elapsed, 1),
            "p50_seconds": round(self.quantile(0.5), 4), "p99_seconds": round(self.quantile(0.99), 4),
        }  # fmt: skip


class Traffic:
    """Sends orders to a server, and looks at every answer. Owns its `tally`."""

    def __init__(self, port: int, golden: Golden) -> None:
        self._port, self._golden = port, golden
        self.tally = Tally()

    async def run(self, orders: Iterable[Order], clients: int) -> None:
        """Each client takes the next order when its last is over, over a connection that it keeps."""
        left = iter(orders)
        await asyncio.gather(*(self._client(left) for _ in range(clients)))

    async def _client(self, orders: Iterator[Order]) -> None:
        connection = Kept(self._port)
        for each in orders:
            await self.serve(connection, each)
        connection.leave()

    async def serve(self, connection: Kept, wanted: Order) -> int:
        """Have one order answered; returns the status."""
        started = time.monotonic()
        try:
            response = await connection.ask(COMPLETIONS, wanted.body())
            self.tally.statuses[response.status] += 1
            if wanted.leaves is not None:
                await self._leave(connection, wanted, Stream().follow(response))
                return response.status
            if response.status == 200 and wanted.stream:
                found = self._streamed(await Stream().read(response))
            else:
                body = b"".join([piece async for piece in response.pieces()])
                found = self._whole(response.status, response.headers, body)
        except (OSError, asyncio.IncompleteReadError) as error:
            self._complain(wanted, f"lost: {type(error).__name__}")
            connection.leave()
            return 0
        if found is not None:
            self.tally.seconds.append(time.monotonic() - started)
            self._check(wanted, found)
        return response.status

    async def _leave(self, connection: Kept, wanted: Order, following: Any) -> None:
        events = 0
        while events < (wanted.leaves or 0) and await anext(following, None) is not None:
            events += 1
        connection.leave()
        await following.aclose()
        self.tally.ended[wanted.kind] += 1

    def _streamed(self, stream: Stream) -> list[list[int]] | None:
        """The token ids of each answer; None where it did not end as it should, once for the stream and each answer."""
        indices = sorted(stream.token_ids)
        if stream.terminals != 1 or stream.errors or sorted(index for index, _ in stream.ends) != indices:
            self.tally.wrong.append(f"a stream with {stream.terminals} ends, {stream.ends}, {stream.errors}")
            return None
        return [stream.token_ids[index] for index in indices]

    def _whole(self, status: int, headers: Mapping[str, str], body: bytes) -> list[list[int]] | None:
        """The same of an answer in one piece; a refusal for want of room says when to come again."""
        if status == 503 and int(headers.get("retry-after", 0)) > 0 and b"QUEUE_FULL" in body:
            return None
        if status != 200:
            self.tally.wrong.append(f"{status} {body[:200]!r}")
            return None
        choices = json.loads(body)["choices"]
        if not all(each["finish_reason"] for each in choices):
            self.tally.wrong.append(f"an answer without an end: {body[:200]!r}")
        return [each["token_ids"] for each in choices]

    def _check(self, wanted: Order, found: list[list[int]]) -> None:
        want = [each.token_ids for each in self._golden.outputs(wanted.prompt, wanted.params)]
        self.tally.tokens += sum(map(len, found))
        if found != want:
            self._complain(wanted, f"{found} instead of {want}")
        self.tally.ended[wanted.kind] += 1

    def _complain(self, wanted: Order, what: str) -> None:
        self.tally.wrong.append(f"{wanted.kind} {wanted.prompt}: {what}")


def learn(golden: Golden, orders: Iterable[Order]) -> None:
    """Ask the oracle beforehand, so that it takes no time while traffic is measured."""
    for each in orders:
        if each.leaves is None:
            golden.outputs(each.prompt, each.params)
