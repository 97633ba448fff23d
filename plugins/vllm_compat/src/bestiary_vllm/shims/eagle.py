"""What model files do for draft models beside them: hidden states of inner layers, handed out on one pipeline stage."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from bestiary.api.errors import UsageError
from bestiary.api.protocols import EagleModelMixin as CoreMixin
from bestiary.nn import get_pp_group


class EagleModelMixin(CoreMixin):
    """Core's, and the part that would send hidden states from stage to stage: nothing here asks for them."""

    supports_aux_hidden_states_over_pp: ClassVar[bool] = False

    def _set_aux_hidden_state_layers(self, layers: tuple[int, ...]) -> None:
        if layers and get_pp_group().world_size > 1:
            raise UsageError(
                "hidden states of inner layers are handed out by models on one stage alone",
                field="pipeline_parallel_size", value=get_pp_group().world_size, limit=1,
            )  # fmt: skip
        super()._set_aux_hidden_state_layers(layers)

    def collect_remote_aux_hidden_states(self, intermediate_tensors: Any) -> list[torch.Tensor]:
        """What earlier stages handed out: nothing."""
        return []

    def pack_local_aux_hidden_states(self, aux_hidden_states: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What this stage hands to later ones: nothing."""
        return {}
