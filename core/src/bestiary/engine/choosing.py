"""`StepChoice`: which tokens of which requests a step computes, and who gives way to them. No torch, no clock.

The rules, all of them:

* **Order.** Everything goes by rank: (priority, arrival), lower first. Running requests come before waiting ones of the
  same priority; a waiting request of a better priority comes before running ones of a worse one.
* **Budget.** A step computes at most `max_num_batched_tokens` tokens for at most `max_num_seqs` running requests. A
  prompt longer than what is left is computed in pieces, or, without chunked prefill, waits for a step with room. What
  a preemption made longer than the whole budget is computed in pieces even then, the first of them with all of its
  prompt.
* **Admission.** A waiting request is admitted when all tokens it has now fit into free blocks (they are not reserved).
  The best-ranked one that does not fit keeps all behind it waiting, so nobody is overtaken for ever. A request lets its
  leader (a sibling with the same prompt) compute the prompt first, for then it finds that in the prefix cache.
* **Adapters.** A request with an adapter runs when that has a slot, or can get one (`adapters.py`). While one waits for
  a slot, of those behind it only requests without an adapter are admitted, so that slots become free; requests of a
  strictly worse priority give theirs up, all those of one adapter. In one step no request with an adapter is looked at
  again after others were admitted.
* **Preemption.** Where a running request lacks a block, the worst-ranked running one gives up all of its own; it keeps
  its tokens and computes them again later, as if they were its prompt. Where a waiting request lacks a block or a
  place, only running ones of a strictly worse priority give way. The best-ranked running request is never preempted for
  another, and one alone always fits (`admission.py`); so it ends, and then the next one does.

What is in flight already is neither chosen again nor preempted.
"""

from __future__ import annotations

from collections.abc import Set

from bestiary.api.config import SchedulerConfig

from .roster import Roster, by_rank
from .sequence import Sequence, Status


class StepChoice:
    """The choice for one step; made anew for each.

    Args:
        share: the most sequences it may be about.
        left_out: ids of those that it must not be about.

    Attributes:
        lacking: the waiting sequence for which there are too few blocks.
    """

    def __init__(self, roster: Roster, config: SchedulerConfig, share: int, left_out: Set[str]) -> None:
        self._roster = roster
        self._kv = roster.kv
        self._config = config
        self._share = share
        self._left_out = left_out
        self.lacking: Sequence | None = None

    def make(self) -> list[Sequence]:
        """The sequences in order of rank, each with its `num_scheduled` tokens and blocks for them."""
        budget = self._config.max_num_batched_tokens
        scheduled: list[Sequence] = []
        running = self._roster.running
        candidate = self._candidate()
        index, share = 0, self._share
        while budget and len(scheduled) < share:
            if index < len(running) and self._stays(running[index]):
                index += 1
                continue
            if index < len(running) and (candidate is None or running[index].priority <= candidate.priority):
                sequence = running[index]
                start = sequence.num_computed
                count = len(sequence.token_ids) - start
                if count > 1:
                    count = self._part(sequence, count, budget)
                    if not count:  # its first step was lost, and others came in between
                        break
                if start + count > sequence.capacity and not self._kv.allocate(sequence, start + count):
                    candidate = None  # where blocks are short, nobody is admitted
                    if not self._make_room(sequence, start + count):
                        break
            elif candidate is not None:
                sequence = candidate
                rank = sequence.rank
                count = self._admit(sequence, budget)
                candidate = self._candidate(rank) if count else None
                if not count:
                    continue
            else:
                break
            sequence.num_scheduled = count
            scheduled.append(sequence)
            budget -= count
            index += 1
        return scheduled

    def _stays(self, sequence: Sequence) -> bool:
        """Whether a running sequence is in flight, or left out of this step."""
        return sequence.num_scheduled > 0 or sequence.request_id in self._left_out

    # --- how many tokens ------------------------------------------------------------------------------------------

    def _part(self, sequence: Sequence, count: int, budget: int) -> int:
        """How many of the `count` tokens that are left of a running sequence to compute, 0 if there is no room."""
        if count > budget and self._least(sequence, count) > budget:
            return 0
        return self._piece(sequence, min(count, budget))

    def _piece(self, sequence: Sequence, count: int) -> int:
        return self._kv.piece(sequence, count) if self._config.enable_chunked_prefill else count

    def _least(self, sequence: Sequence, count: int) -> int:
        """How many of the `count` tokens that are left of a sequence must be computed in one step."""
        if self._config.enable_chunked_prefill:
            return 1
        if sequence.total <= self._config.max_num_batched_tokens:
            return count
        return max(1, sequence.num_prompt - (sequence.total - count))

    # --- who is admitted ------------------------------------------------------------------------------------------

    def _candidate(self, after: tuple[int, int] | None = None) -> Sequence | None:
        """The best-ranked waiting sequence that waits neither for its leader nor for a slot; with an adapter, one that
        is ranked behind `after`."""
        short_of_slots = False
        for sequence in self._roster.waiting:
            if sequence.request_id in self._left_out or self._defers(sequence):
                continue
            if sequence.lora_name is None:
                return sequence
            passed = after is not None and sequence.rank <= after
            if not short_of_slots and not passed and self._has_slot(sequence, sequence.lora_name):
                return sequence
            short_of_slots = True
        return None

    def _defers(self, sequence: Sequence) -> bool:
        leader = sequence.leader
        if leader is None or leader.status is not Status.RUNNING or not self._kv.prefix_caching:
            return False
        return leader.num_computed < sequence.max_matched // self._kv.block_size * self._kv.block_size

    def _has_slot(self, sequence: Sequence, lora_id: str) -> bool:
        """Whether a waiting sequence's adapter is in a slot or can be put into one, if need be into one that requests
        of a worse priority hold: that of the adapter whose best request is ranked worst."""
        if self._roster.slots.has_place(lora_id):
            return True
        running = self._roster.running
        best: dict[str, Sequence] = {}
        for each in running:
            if each.lora_name is not None:
                best.setdefault(each.lora_name, each)
        busy = {each.lora_name for each in running if each.num_scheduled}
        idle = [each for each in best.values() if each.lora_name not in busy]
        victim = max(idle, key=by_rank, default=None)
        if victim is None or victim.priority <= sequence.priority:
            return False
        for holder in [each for each in running if each.lora_name == victim.lora_name]:
            self._roster.preempt(holder)
        return True

    def _admit(self, sequence: Sequence, budget: int) -> int:
        """Move a waiting sequence to the running ones; returns how many tokens to compute, 0 if it must wait."""
        running = self._roster.running
        while True:
            if len(running) < self._config.max_num_seqs:
                count = sequence.total - self._kv.match_prefix(sequence)
                too_long = self._least(sequence, count) > budget
                if self._kv.fits(sequence, sequence.total) and not too_long:
                    break
                self._kv.free(sequence)
                if too_long:
                    return 0
                self.lacking = sequence
            worst = running[-1] if running else None
            if worst is None or worst.priority <= sequence.priority or worst.num_scheduled:
                return 0
            self._roster.preempt(worst)
        if sequence.preemptions == 0:
            self._kv.count_admission(sequence)
        sequence.leader, self.lacking = None, None
        count = self._piece(sequence, min(count, budget))
        self._kv.allocate(sequence, sequence.num_computed + count)
        self._roster.run(sequence)
        return count

    def _make_room(self, sequence: Sequence, num_tokens: int) -> bool:
        """Blocks for a running sequence, taken from the worst-ranked; False if it had to give up its own."""
        while not self._kv.allocate(sequence, num_tokens):
            victim = next(each for each in reversed(self._roster.running) if not each.num_scheduled)
            self._roster.preempt(victim)
            if victim is sequence:
                return False
        return True
