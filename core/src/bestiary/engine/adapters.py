"""Which adapters are known, and which slot each is in. No torch, no clock: a function of the calls made.

The rules, all of them:

* An adapter is checked when it is added, before anything is queued for it; from then on it can be put into any slot.
* A request that runs holds its adapter's slot. An adapter without a slot gets a free one, or that of the least recently
  used adapter that nobody holds, when a request that wants it is about to run; otherwise the request waits.
* An adapter that came with a request (`pinned` is False) gives way when `max_cpu_loras` are known and another comes,
  the least recently used first. Those that were added by name stay until they are removed, and one that a request
  wants, running or waiting, can be neither replaced nor removed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace

from bestiary.api.config import LoRAConfig
from bestiary.api.errors import EngineError, RequestError
from bestiary.api.lora import LoRAInfo

from .plan import LoRALoad


@dataclass(slots=True)
class _Known:
    """requests: not ended. holders: those of them that run."""

    info: LoRAInfo
    pinned: bool
    slot: int | None = None
    requests: int = 0
    holders: int = 0


class Adapters:
    """Owned by the scheduler, which tells it of every request; the engine adds and removes adapters.

    Without a configuration nothing is known and nothing checked: requests may name any adapter, or none.
    """

    def __init__(self, config: LoRAConfig | None = None) -> None:
        self.config = config
        self._by_name: dict[str, _Known] = {}
        self._by_id: OrderedDict[str, _Known] = OrderedDict()  # the least recently used first
        self._slots: list[str | None] = [] if config is None else [None] * config.max_loras
        self._loads: dict[int, str] = {}  # slot → what the next plan puts there

    # --- what is known --------------------------------------------------------------------------------------------

    def known(self, name: str) -> LoRAInfo | None:
        found = self._by_name.get(name)
        return None if found is None else self._info(found)

    def infos(self) -> list[LoRAInfo]:
        """All of them, by name."""
        return [self._info(self._by_name[name]) for name in sorted(self._by_name)]

    def pin(self, name: str) -> None:
        """Keep an adapter until it is removed."""
        self._by_name[name].pinned = True

    def to_drop(self) -> str | None:
        """The adapter that must be removed before another is added; None where there is room.

        Raises:
            RequestError: there is no room, and none gives way.
        """
        if self.config is None or len(self._by_id) < self.config.max_cpu_loras:
            return None
        for each in self._by_id.values():
            if not each.pinned and not each.requests:
                return each.info.name
        raise RequestError(
            f"{len(self._by_id)} adapters are known, and all are wanted",
            code="TOO_MANY_ADAPTERS", field="lora_request", limit=f"max_cpu_loras={self.config.max_cpu_loras}",
            fix="remove_lora(name) for one that is not needed, or more max_cpu_loras",
        )  # fmt: skip

    def add(self, info: LoRAInfo, *, pinned: bool) -> None:
        """Know an adapter whose name is free."""
        if info.name in self._by_name:
            raise EngineError(f"there is an adapter called {info.name} already")
        self._by_name[info.name] = self._by_id[info.lora_id] = _Known(info, pinned)

    def remove(self, name: str) -> LoRAInfo:
        """Forget an adapter and free its slot.

        Raises:
            RequestError: there is none of this name, or a request wants it.
        """
        found = self._by_name.get(name)
        if found is None:
            raise self.unknown(name)
        if found.requests:
            raise RequestError(
                f"adapter {name} is in use", code="ADAPTER_IN_USE", field="lora_name", value=name,
                limit="no unfinished request", fix=f"wait until {found.requests} request(s) have ended, or abort them",
            )  # fmt: skip
        if found.slot is not None:
            self._loads.pop(found.slot, None)
            self._slots[found.slot] = None
        del self._by_name[name], self._by_id[found.info.lora_id]
        return found.info

    def unknown(self, name: str) -> RequestError:
        names = ", ".join(sorted(self._by_name)) or "none"
        return RequestError(
            f"there is no adapter {name!r}"[:300], code="UNKNOWN_ADAPTER", field="lora_name", value=name,
            limit=f"known: {names[:500]}", fix="LoRARequest(name, lora_path=…), or add_lora",
        )  # fmt: skip

    # --- requests, by the ids of their adapters; None for those without one ----------------------------------------

    def check(self, lora_id: str | None) -> None:
        """Raises `EngineError` for an adapter that was not added."""
        if self.config is not None and lora_id is not None and lora_id not in self._by_id:
            raise EngineError(f"adapter {lora_id} was not added")

    def begin(self, lora_id: str | None) -> None:
        """A request that wants the adapter was queued."""
        if (found := self._used(lora_id)) is not None:
            found.requests += 1

    def end(self, lora_id: str | None) -> None:
        """It has ended, and holds no slot any more."""
        if (found := self._used(lora_id)) is not None:
            found.requests -= 1

    def has_place(self, lora_id: str) -> bool:
        """Whether `hold` would find a slot."""
        if self.config is None:
            return True
        return self._by_id[lora_id].slot is not None or self._free_slot() is not None

    def hold(self, lora_id: str | None) -> None:
        """A request begins to run; its adapter is put into a slot, unless it is in one."""
        found = self._used(lora_id)
        if found is None:
            return
        if found.slot is None:
            found.slot = self._evict(found.info.lora_id)
        found.holders += 1

    def release(self, lora_id: str | None) -> None:
        """It runs no more: it has ended, or lost its blocks."""
        if (found := self._used(lora_id)) is not None:
            found.holders -= 1

    def _used(self, lora_id: str | None) -> _Known | None:
        """The adapter, now the most recently used one."""
        if lora_id is None or self.config is None:
            return None
        self._by_id.move_to_end(lora_id)
        return self._by_id[lora_id]

    def _free_slot(self) -> int | None:
        """An empty slot, or that of the least recently used adapter that nobody holds."""
        if None in self._slots:
            return self._slots.index(None)
        return next((each.slot for each in self._by_id.values() if each.slot is not None and not each.holders), None)

    def _evict(self, lora_id: str) -> int:
        """A slot for the adapter; whose it was has none any more."""
        slot = self._free_slot()
        if slot is None:
            raise EngineError(f"no slot is free for adapter {lora_id}")
        before = self._slots[slot]
        if before is not None:
            self._by_id[before].slot = None
        self._slots[slot] = lora_id
        self._loads[slot] = lora_id
        return slot

    # --- plans ----------------------------------------------------------------------------------------------------

    def take_loads(self) -> tuple[LoRALoad, ...]:
        """What must be put into slots before the step that is being planned."""
        loads = tuple(LoRALoad(slot, lora_id) for slot, lora_id in sorted(self._loads.items()))
        self._loads.clear()
        return loads

    def give_back(self, loads: tuple[LoRALoad, ...]) -> None:
        """The plan with these loads failed: what still holds is said again."""
        for slot, lora_id in loads:
            if self._slots[slot] == lora_id:
                self._loads[slot] = lora_id

    def _info(self, known: _Known) -> LoRAInfo:
        return replace(known.info, slot=known.slot, pinned=known.pinned, requests=known.requests)
