"""Answers do not depend on how they were scheduled: in pieces, in a batch, from the cache, after a preemption.

The oracle is the same engine with one request at a time, whole, without a prefix cache.
"""

from __future__ import annotations

from typing import Any

import torch

from bestiary.api.outputs import CompletionOutput
from bestiary.testing.base import ContractBase
from bestiary.testing.check import check
from bestiary.testing.compare import ATOL, require_close, require_same_answers
from bestiary.testing.failures import ContractFailure

_LIKELY = (
    "the model takes something from the batch that belongs to a sequence: use `positions`, never an index or a length",
    "the model keeps something from one step to the next: only attention layers may, in the cache",
)


class ScheduleChecks(ContractBase):
    """`chunked`, `batched`, `cached`, `preempted`, `deterministic`."""

    @check()
    def test_chunked(self) -> None:
        """A prompt computed in pieces equals the same prompt at once."""
        ids = self._prompts(1, 40)[0]
        whole = self.bench.logits(ids)
        for chunk in (1, 3, 7, 16):
            pieces = self.bench.logits(ids, chunk=chunk)
            require_close(pieces, whole, ATOL, f"logits in pieces of {chunk} are not those of the whole prompt")
        llm = self.bench.llm(enable_prefix_caching=False, max_num_batched_tokens=7)
        prompts = self._prompts(3, 30)
        require_same_answers(
            self.bench.generate(prompts, llm), self._alone(prompts), "answers depend on pieces of 7 tokens", _LIKELY
        )

    @check()
    def test_batched(self) -> None:
        """Requests in one batch answer as each does alone."""
        prompts = [ids[: 3 + 5 * number] for number, ids in enumerate(self._prompts(7, 40))]
        llm = self.bench.llm(enable_prefix_caching=False)
        require_same_answers(
            self.bench.generate(prompts, llm), self._alone(prompts), "answers depend on the batch", _LIKELY
        )

    @check()
    def test_cached(self) -> None:
        """Prompts found in the prefix cache answer as computed ones do, for several block sizes."""
        head, *tails = self._prompts(5, 33)
        prompts = [head, head, *(head[: 6 * number] + tail[:5] for number, tail in enumerate(tails, 2))]
        want = self._alone(prompts)
        for block_size in (1, 4, 16):
            llm = self.bench.llm(block_size=block_size, num_gpu_blocks_override=max(24, 384 // block_size))
            for _ in range(2):
                what = f"answers depend on the prefix cache (blocks of {block_size})"
                require_same_answers(self.bench.generate(prompts, llm), want, what, _LIKELY)
            if not llm.engine.stats().kv_cache.prefix_hits:
                raise ContractFailure(f"nothing was found in the prefix cache (blocks of {block_size})")

    @check()
    def test_preempted(self) -> None:
        """Requests that lose their blocks and start again answer as undisturbed ones do."""
        prompts, tokens = self._prompts(6, 20), 20
        llm = self.bench.llm(enable_prefix_caching=False, block_size=4, num_gpu_blocks_override=14)
        before = llm.engine.stats().preemptions
        got = self.bench.generate(prompts, llm, tokens)
        if llm.engine.stats().preemptions == before:
            raise ContractFailure("no request was preempted, so the check says nothing")
        require_same_answers(got, self._alone(prompts, tokens), "answers depend on a preemption", _LIKELY)

    @check()
    def test_deterministic(self) -> None:
        """With deterministic=True log-probabilities are bitwise the same: alone, batched, in pieces, cached."""
        prompts = self._prompts(4, 21)
        alone = self.bench.llm(deterministic=True, enable_prefix_caching=False, max_num_seqs=1)
        want = self.bench.generate(prompts, alone, 8)
        for how, options in _ARRANGEMENTS.items():
            got = self.bench.generate(prompts, self.bench.llm(deterministic=True, **options), 8)
            for number, (one, other) in enumerate(zip(got, want, strict=True)):
                if (one.token_ids, one.logprobs) != (other.token_ids, other.logprobs):
                    raise ContractFailure(
                        f"with deterministic=True, answers {how} differ in their bits from those alone",
                        where=f"request {number}, token {_first_difference(one, other)}",
                        likely=[*_LIKELY, "a product or a sum in the model file whose shape depends on the batch"],
                    )

    def _prompts(self, count: int, length: int) -> list[list[int]]:
        vocabulary = int(self.bench.expected([0]).shape[-1])
        generator = torch.Generator().manual_seed(count * 100 + length)
        return torch.randint(0, vocabulary, (count, length), generator=generator).tolist()

    def _alone(self, prompts: list[list[int]], tokens: int = 16) -> list[CompletionOutput]:
        return self.bench.generate(prompts, self.bench.llm(enable_prefix_caching=False, max_num_seqs=1), tokens)


_ARRANGEMENTS: dict[str, dict[str, Any]] = {
    "in a batch": {"enable_prefix_caching": False},
    "in pieces": {"enable_prefix_caching": False, "max_num_batched_tokens": 5},
    "from the cache": {"block_size": 8},
}


def _first_difference(one: CompletionOutput, other: CompletionOutput) -> int:
    pairs = zip(one.logprobs or [], other.logprobs or [], strict=True)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), 0)
