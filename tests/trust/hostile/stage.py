"""`Stage`: a server, canaries that sing to it all the while, and what must be as before after every group of rows."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from bestiary import SamplingParams

from ..support.baseline import Holding
from ..support.canaries import Canaries, http_song
from ..support.chaos import as_fields
from ..support.golden import Golden
from ..support.server import Server
from .oracle import Verdict, exchange, judge
from .row import KEYS, Row

SONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
SONGS = [[40, 41, 42], [50, 41, 45, 43]]
MOST_GROWTH = 8 << 20
"""Bytes by which a process may have grown; the figure is recorded."""
STALLED = 5.0
"""Seconds between two tokens of a canary, after which a test fails; the promise is 1, and the figure is recorded."""
_LOG_SECONDS = 30.0
_URGENT = -1


@dataclass(slots=True)
class Report:
    """What came of a group of rows."""

    verdicts: list[Verdict] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def wrong(self) -> list[str]:
        return [*(str(each) for each in self.verdicts if each.complaints), *self.complaints]

    def inputs(self) -> Counter[str]:
        """How many inputs each kind of row had."""
        return Counter(each.row.id for each in self.verdicts)


class Stage:
    """Owns what was measured of the server when it was new.

    Args:
        server: ready, with `KEYS`.
    """

    def __init__(self, server: Server, golden: Golden) -> None:
        self.server, self._golden = server, golden
        server.headers = {"authorization": f"Bearer {KEYS[0]}"}
        self._pids = self.pids()

    def pids(self) -> tuple[int, int | None]:
        return self.server.process.pid, self.server.engine_pid

    def memory(self) -> list[int]:
        """Bytes of the server and of its engine."""
        return [Holding.of(pid).memory for pid in self._pids if pid is not None]

    def canaries(self) -> Canaries:
        fields = as_fields(SONG) | {"priority": _URGENT}
        return Canaries(http_song(self.server, fields), self._golden, SONGS, SONG)

    async def run(self, rows: Iterable[Row]) -> Report:
        """Send every row, one at a time, beside the canaries; then look at everything the rows may have changed."""
        report, before, logged = Report(), self.memory(), len(self.server.log)
        async with self.canaries() as canaries:
            for number, row in enumerate(rows):
                heard = await exchange(self.server.port, row.wire(f"row-{logged}-{number}"))
                report.verdicts.append(judge(row, heard))
        await self.finish(report, canaries, before, logged)
        return report

    async def finish(
        self, report: Report, canaries: Canaries, before: list[int], logged: int, most_growth: int = MOST_GROWTH
    ) -> None:
        """Everything that is true when a group of inputs is over."""
        say = report.complaints.append
        if not canaries.are_well:
            say(f"canaries: {dict(canaries.ended)}, {canaries.wrong[:2]}")
        if canaries.largest_gap > STALLED:
            say(f"a canary waited {canaries.largest_gap:.1f} s for a token")
        live = await self.server.get("/health/live")
        if live.status != 200:
            say(f"/health/live: {live.status}")
        await self.server.until_quiet()
        if self.pids() != self._pids:
            say(f"other processes: {self.pids()}, not {self._pids}")
        growth = [now - then for now, then in zip(self.memory(), before, strict=True)]
        if max(growth) > most_growth:
            say(f"the processes grew by {growth} bytes")
        await self._check_log(report, logged)
        late = [each for each in report.verdicts if each.heard.seconds > each.row.seconds]
        report.figures |= {
            "seconds_to_the_slowest_answer": round(max((v.heard.seconds for v in report.verdicts), default=0.0), 3),
            "answers_later_than_promised": len(late), "largest_gap_of_a_canary": round(canaries.largest_gap, 3),
            "songs_of_canaries": canaries.ended["length"], "growth_in_mib": round(max(growth) / 2**20, 2),
        }  # fmt: skip

    async def _check_log(self, report: Report, logged: int) -> None:
        """Every refusal has one warning in the log, with its request id, and nothing else was worth one."""
        wanted = Counter(each.request_id for each in report.verdicts if each.heard.status >= 400)
        deadline = time.monotonic() + _LOG_SECONDS
        while (found := self._warned(logged))[0].keys() < wanted.keys() and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        warned, others = found
        silent = sum(each.heard.status == 0 for each in report.verdicts)
        if wanted - warned:
            report.complaints.append(f"no line in the log for {list(wanted - warned)[:5]}")
        if sum((warned - wanted).values()) > silent:
            report.complaints.append(f"lines in the log for {list(warned - wanted)[:5]}")
        blocked = [each for each in others if "event loop has been blocked" in each["message"]]
        report.figures["times_the_loop_was_blocked_for_a_second"] = len(blocked)
        report.complaints += [f"in the log: {each}"[:2000] for each in others if each not in blocked]

    def _warned(self, start: int) -> tuple[Counter[str], list[Any]]:
        """Refusals by request id, without those of canaries that came when there was no room; and all other entries."""
        entries = self.server.log[start:]
        refusals = [each for each in entries if each.get("logger") == "bestiary.http" and each["level"] == "WARNING"]
        ours = (each for each in refusals if each["code"] != "QUEUE_FULL" or "-" in each["request_id"])
        return Counter(each["request_id"] for each in ours), [each for each in entries if each not in refusals]
