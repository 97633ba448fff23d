"""`PagedModel`: an executor without torch that notices every mistake in a `StepPlan`. For tests of the scheduler.

A language model of a few lines: the *state* at a position is a hash of the state before it and the token there, so it
depends on every token so far, as keys and values do; the next token is a hash of the state, the seed and the position.
States live in pages, at the slots the block tables name, and are read back through them: a wrong table, a stale prefix
hit, a block given to two requests or freed too early gives a wrong state, and that raises `PageFault`.

`generate_alone` and `pool_alone` are the same model without pages, steps or other requests: the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from zlib import crc32

from bestiary.api.outputs import FinishReason, Logprob, TokenLogprobs
from bestiary.engine.plan import NewRequest, PooledVector, SampledToken, ScheduledItem, StepPlan, StepResult

_MASK = 2**64 - 1


class PageFault(AssertionError):
    """A plan broke the contract of `engine/plan.py`, or a page does not hold what it must."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request must come to, whatever the schedule."""

    token_ids: list[int]
    finish_reason: FinishReason
    stop_reason: int | None
    prompt_logprobs: list[TokenLogprobs | None] | None


@dataclass(slots=True)
class _Known:
    """A request as the executor knows it: its tokens, and the right state at every position."""

    request: NewRequest
    tokens: list[int]
    initial: int
    states: list[int] = field(default_factory=list)

    def append(self, token: int) -> None:
        self.tokens.append(token)

    def state(self, position: int) -> int:
        while len(self.states) <= position:
            before = self.states[-1] if self.states else self.initial
            self.states.append(_mix(before, self.tokens[len(self.states)]))
        return self.states[position]


class PagedModel:
    """Executes plans over `num_blocks` pages of `block_size` states.

    numerical_at: request id → the number of the token whose drawing fails, from 0.
    waits_at: request id → the numbers of tokens before each of which it waits for a step. ends_at: request id → the
        number of the token in whose place it ends.
    prompt_salt: as the scheduler's; prompts to which it gives different salts have different states.
    lora_slots: how many slots there are for adapters; None: a request's adapter has to be in none.
    state_rows: how many rows there are for sequences' states; each holds the state after some token. 0: there are none.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        vocab_size: int = 11,
        numerical_at: dict[str, int] | None = None,
        prompt_salt: Callable[[int], str | None] | None = None,
        lora_slots: int | None = None,
        state_rows: int = 0,
    ) -> None:
        self.rows = [0] * state_rows
        self.lora_slots: list[str | None] | None = None if lora_slots is None else [None] * lora_slots
        self.block_size = block_size
        self.vocab_size = vocab_size
        self.numerical_at = numerical_at or {}
        self.waits_at: dict[str, set[int]] = {}
        self.ends_at: dict[str, int] = {}
        self.prompt_salt = prompt_salt
        self.pages = [[0] * block_size for _ in range(num_blocks)]
        self.known: dict[str, _Known] = {}

    def execute(self, plan: StepPlan, *, lose: bool = False) -> StepResult | None:
        """One step. lose: write the pages, then fail, as a worker that dies half-way; returns None."""
        for request_id in plan.finished:
            self.known.pop(request_id, None)
        for request in plan.new:
            self.known[request.request_id] = self._know(request)
        self._load(plan)
        writers = self._writers(plan)
        self._check_rows(plan)
        sampled: dict[str, SampledToken] = {}
        pooled: dict[str, PooledVector] = {}
        prompt_logprobs: dict[str, list[TokenLogprobs]] = {}
        for item in plan.items:
            known = self.known[item.request_id]
            self._write(item, known)
            self._take_in(item, known)
            self._attend(item, known, writers)
            if known.request.sampling.prompt_logprobs is not None:
                prompt_logprobs[item.request_id] = self._prompt_logprobs(item, known)
            if item.samples and known.request.pooling is not None:
                pooled[item.request_id] = self._pool(item)
            elif item.samples:
                sampled[item.request_id] = self._draw(item, known)
        if lose:
            return None
        for request_id, token in sampled.items():
            if token.instead is None:
                self.known[request_id].append(token.token_id)
        return StepResult(plan.step, sampled, prompt_logprobs, pooled)

    def generate_alone(self, request: NewRequest, max_model_len: int) -> Answer:
        known = self._know(request)
        sampling, prompt = request.sampling, len(request.prompt_token_ids)
        limit = max_model_len if sampling.max_tokens is None else prompt + sampling.max_tokens
        entries = None
        if sampling.prompt_logprobs is not None:
            entries = [None, *(_entry(known.state(i), known.tokens[i + 1]) for i in range(prompt - 1))]
        while True:
            drawn = len(known.tokens) - prompt
            if self.numerical_at.get(request.request_id) == drawn:
                return Answer(known.tokens[prompt:], "error", None, entries if drawn else None)
            if self.ends_at.get(request.request_id) == drawn:
                return Answer(known.tokens[prompt:], "stop", None, entries)
            token = self._choose(request, known.state(len(known.tokens) - 1), drawn)
            known.append(token)
            output = known.tokens[prompt:]
            if drawn + 1 >= sampling.min_tokens:
                if token in request.eos_token_ids and not sampling.ignore_eos:
                    return Answer(output, "stop", None, entries)
                if token in sampling.stop_token_ids:
                    return Answer(output, "stop", token, entries)
            if len(known.tokens) == limit:
                return Answer(output, "length", None, entries)

    def _load(self, plan: StepPlan) -> None:
        """Put adapters into slots; all that the plan's requests want must be in one."""
        if self.lora_slots is None:
            return
        for slot, lora_id in plan.lora_loads:
            self.lora_slots[slot] = lora_id
        for item in plan.items:
            wanted = self.known[item.request_id].request.lora_name
            _require(wanted is None or wanted in self.lora_slots, item, f"adapter {wanted} is in no slot")

    def _know(self, request: NewRequest) -> _Known:
        """The adapter, and the prompt's length where it has a salt, change keys and values: they are in every state."""
        salt = self.prompt_salt(len(request.prompt_token_ids)) if self.prompt_salt else None
        initial = crc32(repr(request.lora_name if salt is None else (request.lora_name, salt)).encode())
        return _Known(request, list(request.prompt_token_ids), initial)

    def _writers(self, plan: StepPlan) -> dict[tuple[int, int], str]:
        writers: dict[tuple[int, int], str] = {}
        for item in plan.items:
            for position in range(item.start, item.start + item.count):
                slot = self._slot(item, position)
                _require(slot not in writers, item, f"slot {slot} is written twice in one step")
                writers[slot] = item.request_id
        return writers

    def _check_rows(self, plan: StepPlan) -> None:
        """No row of a step is written twice, or written and read."""
        taken = {item.state_read for item in plan.items}
        for item in plan.items:
            _require((item.state_write >= 0) == bool(self.rows), item, "a row to write is missing, or there are none")
            _require(not self.rows or item.state_write not in taken, item, "the row written is another's in this step")
            taken.add(item.state_write)

    def _take_in(self, item: ScheduledItem, known: _Known) -> None:
        """The recurrence: the state in the row read, every token, the row written."""
        if not self.rows:
            return
        _require((item.state_read < 0) == (item.start == 0), item, "a state is read where there is none, or not read")
        state = self.rows[item.state_read] if item.start else known.initial
        _require(not item.start or state == known.state(item.start - 1), item, "the row read holds something else")
        for position in range(item.start, item.start + item.count):
            state = _mix(state, known.tokens[position])
        self.rows[item.state_write] = state

    def _write(self, item: ScheduledItem, known: _Known) -> None:
        end = item.start + item.count
        _require(item.start >= 0 and item.count > 0, item, "nothing to compute")
        _require(end <= len(known.tokens), item, f"only {len(known.tokens)} tokens are known")
        _require(item.samples == (end == len(known.tokens)), item, "`samples` is wrong")
        state = self._read(item, item.start - 1) if item.start else known.initial
        for position in range(item.start, end):
            state = _mix(state, known.tokens[position])
            page, offset = self._slot(item, position)
            self.pages[page][offset] = state

    def _attend(self, item: ScheduledItem, known: _Known, writers: dict[tuple[int, int], str]) -> None:
        for position in range(item.start + item.count):
            right = self._read(item, position) == known.state(position)
            _require(right, item, f"position {position} holds something else")
            writer = writers.get(self._slot(item, position), item.request_id)
            _require(writer == item.request_id, item, f"position {position} is written by {writer} in this very step")

    def _draw(self, item: ScheduledItem, known: _Known) -> SampledToken:
        drawn = len(known.tokens) - len(known.request.prompt_token_ids)
        if self.numerical_at.get(item.request_id) == drawn:
            return SampledToken(0, error="numerical")
        if drawn in self.waits_at.get(item.request_id, ()):
            self.waits_at[item.request_id].remove(drawn)
            return SampledToken(-1, instead="wait")
        if self.ends_at.get(item.request_id) == drawn:
            return SampledToken(-1, instead="end")
        return SampledToken(self._choose(known.request, self._read(item, item.start + item.count - 1), drawn))

    def _pool(self, item: ScheduledItem) -> PooledVector:
        """The state at the end of a prompt is its vector."""
        if self.numerical_at.get(item.request_id) == 0:
            return PooledVector(b"", "numerical")
        return PooledVector(self._read(item, item.start + item.count - 1).to_bytes(8, "little"))

    def pool_alone(self, request: NewRequest) -> bytes:
        return self._know(request).state(len(request.prompt_token_ids) - 1).to_bytes(8, "little")

    def _choose(self, request: NewRequest, state: int, drawn: int) -> int:
        token = _mix(_mix(state, request.seed), drawn) % self.vocab_size
        if drawn < request.sampling.min_tokens:
            while token in request.eos_token_ids or token in request.sampling.stop_token_ids:
                token = (token + 1) % self.vocab_size
        return token

    def _prompt_logprobs(self, item: ScheduledItem, known: _Known) -> list[TokenLogprobs]:
        end = min(item.start + item.count, len(known.request.prompt_token_ids) - 1)
        return [_entry(self._read(item, i), known.tokens[i + 1]) for i in range(item.start, end)]

    def _slot(self, item: ScheduledItem, position: int) -> tuple[int, int]:
        index, offset = divmod(position, self.block_size)
        _require(index < len(item.block_ids), item, f"no block for position {position}")
        return item.block_ids[index], offset

    def _read(self, item: ScheduledItem, position: int) -> int:
        page, offset = self._slot(item, position)
        return self.pages[page][offset]


def _require(holds: bool, item: ScheduledItem, complaint: str) -> None:
    if not holds:
        raise PageFault(f"{complaint}: {item}")


def _mix(state: int, value: int) -> int:
    """SplitMix64's finalizer (Steele, Lea, Flood 2014) over both."""
    x = (state * 0x9E3779B97F4A7C15 + value + 1) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _entry(state: int, token: int) -> TokenLogprobs:
    return {token: Logprob(-(_mix(state, token) % 1000) / 100, 1)}
