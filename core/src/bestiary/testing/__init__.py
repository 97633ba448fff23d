"""The conformance kit: what an author of an architecture inherits instead of writing tests.

    from bestiary.testing import ModelContract

    class TestMixtral(ModelContract):
        architecture = "MixtralForCausalLM"
        config = {"model_type": "mixtral", "hidden_size": 64, ...}

Needs ``pip install "bestiary[testing]"``. `contract` says what a class may state, `checks` holds the checks by topic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bestiary.api.lazy import lazy_names

if TYPE_CHECKING:
    from .contract import ModelContract
    from .failures import ContractFailure
    from .table import support_table, write_table

__all__ = ["ContractFailure", "ModelContract", "support_table", "write_table"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ContractFailure": "bestiary.testing.failures",
        "ModelContract": "bestiary.testing.contract",
        "support_table": "bestiary.testing.table",
        "write_table": "bestiary.testing.table",
    },
)
