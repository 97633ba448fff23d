"""A runner's adapters: those in memory, checked and cut for this rank, and which of them is in which slot."""

from __future__ import annotations

from collections.abc import Mapping

from bestiary.api.errors import EngineError
from bestiary.api.lora import LoRAInfo
from bestiary.nn.lora import AdapterSlots, Prepared

from .loader.lora import read_adapter
from .plan import StepPlan


class LoadedAdapters:
    """Owned by the runner. `slot_of`: adapter id → slot, as the last plan left it."""

    def __init__(self, slots: AdapterSlots) -> None:
        self.slots = slots
        self.slot_of: dict[str, int] = {}
        self._prepared: dict[str, Prepared] = {}

    def add(self, name: str, path: str) -> LoRAInfo:
        """Read an adapter and keep it ready; no slot is touched. Raises `BadAdapter`, and nothing has changed."""
        info, prepared = read_adapter(name, path, self.slots)
        self._prepared[info.lora_id] = prepared
        return info

    def remove(self, lora_id: str) -> None:
        """Forget an adapter; one that is not known is none."""
        self._prepared.pop(lora_id, None)
        self.slot_of.pop(lora_id, None)

    def follow(self, plan: StepPlan) -> Mapping[str, int]:
        """Put into slots what a plan wants there; returns `slot_of`."""
        for load in plan.lora_loads:
            self._load(load.slot, load.lora_id)
        return self.slot_of

    def _load(self, slot: int, lora_id: str) -> None:
        prepared = self._prepared.get(lora_id)
        if prepared is None:
            raise EngineError(f"adapter {lora_id} is not in memory")
        self.slot_of = {other: place for other, place in self.slot_of.items() if place != slot}
        self.slots.load(slot, prepared)
        self.slot_of[lora_id] = slot
