"""Whether the tiny model shows mistakes at all."""

from __future__ import annotations

import fnmatch
from types import SimpleNamespace

from bestiary.testing.base import ContractBase
from bestiary.testing.check import check
from bestiary.testing.failures import ContractFailure
from bestiary.testing.visibility import too_flat, what_is_hidden, without_effect


class ConfigurationChecks(ContractBase):
    """`shows_mistakes`."""

    @check(listed=False)
    def test_shows_mistakes(self) -> None:
        """The tiny model's sizes and weights hide no mistake: every weight moves the logits."""
        model = self.bench.reference()
        config = getattr(model, "config", None) or SimpleNamespace(**self.bench.config())
        ids = self.bench.prompts()[-1]
        problems = [*what_is_hidden(config), *too_flat(self.bench.expected(ids))]
        for form, moved in without_effect(model, ids).items():
            if not any(fnmatch.fnmatch(form, pattern) for pattern in self.without_effect):
                problems.append(f"{form}: changing it moves the reference's logits by {moved:.1g} only")
        if problems:
            raise ContractFailure(
                "the configuration would hide mistakes",
                details=problems,
                likely=[
                    "sizes too small or too alike: change them in config",
                    "a weight that cannot matter (a key's bias without rotation): say so in without_effect",
                ],
            )
