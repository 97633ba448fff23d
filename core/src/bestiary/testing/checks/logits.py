"""Logits and greedy tokens against the reference, and how bfloat16 compares."""

from __future__ import annotations

import torch

from bestiary.serve.llm import LLM
from bestiary.testing.base import BASE, ContractBase
from bestiary.testing.check import check
from bestiary.testing.compare import ATOL, distance, require_close
from bestiary.testing.failures import ContractFailure
from bestiary.testing.reference import reference_logits
from bestiary.testing.trace import first_difference
from bestiary.testing.workbench import TOKENS


class LogitsChecks(ContractBase):
    """`logits`, `greedy` for every variant; `bf16`."""

    @check()
    def test_logits(self, variant: str) -> None:
        """Logits equal the reference's in fp32, within 1e-4.

        For prompts of 1, 5, 17 and 40 tokens, and one that fills the context where that is at most 256 tokens.
        """
        llm = self.bench.llm(self.bench.checkpoint(variant))
        for ids in [*self.bench.prompts(variant), *self.bench.longest_prompt(variant)]:
            want = self.bench.expected(ids, variant)
            try:
                require_close(
                    self.bench.logits(ids, llm), want, ATOL, "the logits are not the reference's",
                    where=f"variant {variant!r}, prompt of {len(ids)} tokens",
                )  # fmt: skip
            except ContractFailure as failure:
                raise self._located(failure, llm, variant, ids) from None

    @check()
    def test_greedy(self, variant: str) -> None:
        """Greedy tokens equal the reference's, all prompts in one batch."""
        llm = self.bench.llm(self.bench.checkpoint(variant))
        prompts = self.bench.prompts(variant)
        for ids, answer in zip(prompts, self.bench.generate(prompts, llm), strict=True):
            rows = self.bench.expected([*ids, *answer.token_ids], variant)[len(ids) - 1 : -1]
            for at, (token, row) in enumerate(zip(answer.token_ids, rows, strict=True)):
                gap = float(row.max() - row[token])
                if gap > ATOL:
                    raise ContractFailure(
                        "a greedy token is not the reference's likeliest",
                        where=f"variant {variant!r}, prompt of {len(ids)} tokens, token {at} of {TOKENS}",
                        got=f"{token}, whose logit is {gap:.3g} below that of {int(row.argmax())}",
                        likely=["if `logits` holds: what the model keeps from step to step, or takes from the batch"],
                    )
        if variant != BASE:
            self.bench.drop(self.bench.checkpoint(variant))

    @check()
    def test_bf16(self) -> None:
        """Logits in bfloat16 stay within the stated bound of the reference's in fp32."""
        variant = self.smooth_variant
        llm = self.bench.llm(self.bench.checkpoint(variant), dtype="bfloat16")
        for ids in self.bench.prompts(variant):
            want = self.bench.expected(ids, variant)
            got = self.bench.logits(ids, llm)
            off = distance(got, want)
            if not off <= self.bf16_bound:
                raise ContractFailure(
                    "logits in bfloat16 are farther off than bf16_bound",
                    where=f"variant {variant!r}, prompt of {len(ids)} tokens",
                    got=f"{off:.3g} of the logits' norm",
                    allowed=f"{self.bf16_bound:.3g}",
                    likely=[
                        "a sum, a softmax, a norm or a rotation computed in bfloat16 that needs float32",
                        "a hard choice, of experts for instance: name a smooth_variant without one",
                        "or the bound is too tight for this architecture: state another bf16_bound",
                    ],
                )

    def _located(self, failure: ContractFailure, llm: LLM, variant: str, ids: list[int]) -> ContractFailure:
        """The same failure, with the module where ours leaves the reference."""
        theirs = self.bench.reference(variant)
        with torch.inference_mode():
            found = first_difference(
                self.bench.model(llm),
                lambda: self.bench.logits(ids, llm),
                theirs,
                lambda: reference_logits(theirs, ids),
            )
        return failure if found is None else failure.with_detail(found)
