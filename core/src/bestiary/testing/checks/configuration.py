"""Whether the tiny model shows mistakes at all."""

from __future__ import annotations

import fnmatch
import json
from types import SimpleNamespace

import torch

from bestiary.api.errors import ConfigError
from bestiary.api.registry import ModelRegistry
from bestiary.engine.loader.load import build_model
from bestiary.testing.base import BASE, ContractBase
from bestiary.testing.check import check
from bestiary.testing.failures import ContractFailure
from bestiary.testing.fields import Built, reads_by, what_is_not_varied
from bestiary.testing.visibility import too_flat, what_is_hidden, without_effect

from .readme import contracts_beside


class ConfigurationChecks(ContractBase):
    """`shows_mistakes`, `refused`."""

    @classmethod
    def why_not(cls, name: str) -> str | None:
        if name == "refused" and not cls.refused:
            return "the contract states nothing that is refused"
        return super().why_not(name)

    @check(listed=False)
    def test_shows_mistakes(self) -> None:
        """The tiny model hides no mistake: every weight moves the logits, every field that is read is varied."""
        model = self.bench.reference()
        config = getattr(model, "config", None) or SimpleNamespace(**self.bench.config())
        ids = self.bench.prompts()[-1]
        problems = [*what_is_hidden(config), *too_flat(self.bench.expected(ids))]
        for form, moved in without_effect(model, ids).items():
            if not any(fnmatch.fnmatch(form, pattern) for pattern in self.without_effect):
                problems.append(f"{form}: changing it moves the reference's logits by {moved:.1g} only")
        for name in self.variants:
            if (unknown := self._unknown_fields(name)) and self._is_base(name):
                problems.append(f"variants[{name!r}]: changes nothing; nobody knows a field {', '.join(unknown)}")
        problems += self._not_varied()
        if problems:
            raise ContractFailure(
                "the configuration would hide mistakes",
                details=problems,
                likely=[
                    "sizes too small or too alike: change them in config",
                    "a weight that cannot matter (a key's bias without rotation): say so in without_effect",
                    "a field of a variant that is misspelt",
                    "a field that every variant leaves alone: add a variant that changes it",
                ],
            )

    def _unknown_fields(self, variant: str) -> list[str]:
        """The changed fields that neither the configuration's class nor the base has."""
        config = getattr(self.bench.reference(variant), "config", None)
        renamed = getattr(config, "attribute_map", {})
        return [
            name
            for name in self.variants[variant]
            if name not in renamed and name not in self.bench.config() and not hasattr(type(config), name)
        ]

    def _is_base(self, variant: str) -> bool:
        """Whether the reference of a variant answers bit for bit as the base's, which has the same random weights."""
        answers = [self.bench.expected(self.bench.prompts(name)[-1], name) for name in (BASE, variant)]
        return torch.equal(*answers)

    def _not_varied(self) -> list[str]:
        """Contracts beside this one count as well where they are of the same class."""
        model_class = ModelRegistry.resolve([self.architecture])
        models = []
        for variant in (BASE, *self.variants):
            found, config = self.bench.configure(variant)
            fields = config.model_config.hf_config
            with reads_by(model_class.__module__.partition(".")[0], fields) as seen:
                build_model(found, config)
            values = {read.field: getattr(fields, read.field) for read in seen if hasattr(fields, read.field)}
            models.append(Built(values, frozenset(seen)))
        models += [Built({**(self.config or {}), **changed}) for changed in self.refused.values()]
        others = [each for each in contracts_beside(type(self)) if each.architecture != self.architecture]
        for each in others:
            if each.config is not None and ModelRegistry.resolve([each.architecture]) is model_class:
                models += [Built({**each.config, **changed}) for changed in ({}, *each.variants.values())]
        return list(what_is_not_varied(fields, models))

    @check()
    def test_refused(self) -> None:
        """A configuration that the model cannot compute is refused, by the field's name."""
        fields = json.loads((self.bench.checkpoint() / "config.json").read_text(encoding="utf-8"))
        problems = []
        for name, changed in self.refused.items():
            folder = self.bench.folder / "refused"
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text(json.dumps(fields | dict(changed)), encoding="utf-8")
            try:
                self.bench.build(model_path=folder)
            except ConfigError as error:
                if not any(field in str(error) for field in changed):
                    problems.append(f"{name}: the error names none of {', '.join(changed)}: {error}")
            else:
                problems.append(f"{name}: built without a word")
        if problems:
            raise ContractFailure(
                "a model that cannot be computed is built",
                details=problems,
                likely=["a field of the configuration that the model file does not read"],
            )
