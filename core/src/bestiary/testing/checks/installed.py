"""Static checks: what an installed architecture owes before any model of it is built."""

from __future__ import annotations

from bestiary.api.choices import current
from bestiary.api.conformance import capabilities, claims, problems_of
from bestiary.api.discovery import scan
from bestiary.api.registry import Registry
from bestiary.testing.base import ContractBase
from bestiary.testing.check import check
from bestiary.testing.failures import ContractFailure
from bestiary.testing.import_child import watch_import


class InstalledChecks(ContractBase):
    """`found`, `clean_import`, `members`."""

    @check(static=True)
    def test_found(self) -> None:
        """Found by its entry point, in one installed distribution, for this core's API."""
        self._registry().find([self.architecture], current())

    @check(static=True)
    def test_clean_import(self) -> None:
        """Importing its module computes, prints, writes and connects nothing.

        In a fresh process, after torch and `bestiary.nn`: CUDA stays untouched, no thread is started, no process, no
        socket; no file is written; less than 32 MiB are allocated; nothing is printed; of Bestiary nothing beyond
        `nn` and `api` is loaded.
        """
        entry = self._registry().entry(self.architecture, current())  # not imported here: it may do anything
        module = entry.value.partition(":")[0].strip()
        problems = watch_import(module)
        if problems:
            raise ContractFailure(
                f"importing {module} does what an import must not",
                details=problems,
                likely=["work at the top of a module: move it into the function or class that needs it"],
                look=f"python -X importtime -c 'import {module}'",
            )

    @check(static=True)
    def test_members(self) -> None:
        """Has every member of its protocols, with their signatures, backs every claim, and claims what it has."""
        found = self._registry().find([self.architecture], current()).model_class
        problems = [str(problem) for problem in problems_of(found)]
        problems += [*_unbacked(found), *_unclaimed(found)]
        if problems:
            raise ContractFailure(
                f"{found.__name__} is not what it claims",
                details=problems,
                look="bestiary.api.protocols has the signatures",
            )

    def _registry(self) -> Registry:
        """What is installed, whatever was registered by hand; the architecture is among it."""
        registry = Registry()
        if self.architecture not in registry.architectures():
            malformed = [f"{row.name}: {row.reason} ({row.path})" for row in scan().malformed]
            raise ContractFailure(
                f"no installed distribution declares {self.architecture}",
                got=f"installed: {', '.join(registry.architectures()) or 'no architecture'}",
                details=malformed,
                likely=[
                    "the package is not installed: pip install -e .",
                    f'pyproject.toml lacks [project.entry-points.vllm_models] {self.architecture} = "module:Class"',
                    "it was installed before the entry point was written: install it again",
                ],
                look="bestiary doctor",
            )
        return registry


def _unbacked(cls: type) -> list[str]:
    """Claims that `capabilities` does not confirm."""
    info = capabilities(cls)
    claimed = {
        "supports_lora": info.lora,
        "supports_pp": info.pp,
        "supports_multimodal": info.multimodal,
        "is_mixture_of_experts": info.moe,
        "supports_quant": info.quant,
        "has_inner_state": info.inner_state,
    }
    return [
        f"{name} is claimed and not backed"
        for name, backed in claimed.items()
        if getattr(cls, name, 0) is True and not backed
    ]


_TELLING = {
    "make_empty_intermediate_tensors": "supports_pp",
    "embedding_modules": "supports_lora",
    "embed_multimodal": "supports_multimodal",
}
"""Members that a class writes for one protocol only → the protocol's marker."""


def _unclaimed(cls: type) -> list[str]:
    """What the class has and does not claim, so that nobody would use it."""
    written = {name for owner in cls.__mro__ if not getattr(owner, "_is_protocol", False) for name in vars(owner)}
    return [
        f"{member} is written, but {marker} is not claimed"
        for member, marker in _TELLING.items()
        if member in written and not claims(cls, marker)
    ]
