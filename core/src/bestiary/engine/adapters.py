"""Which adapters are known, and which slot each is in. No torch, no clock: functions of the calls made.

The rules, all of them:

* An adapter is checked when it is added, before anything is queued for it; from then on it can be put into any slot.
* A request that runs holds its adapter's slot. An adapter without a slot gets a free one, or that of the least recently
  used adapter that nobody holds, when a request that wants it is about to run; otherwise the request waits.
* An adapter that came with a request (`pinned` is False) gives way when `max_cpu_loras` are known and another comes,
  the least recently used first. Those that were added by name stay until they are removed, and one that a request
  wants, running or waiting, can be neither replaced nor removed.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, replace

from bestiary.api.config import LoRAConfig
from bestiary.api.errors import EngineError, RequestError
from bestiary.api.lora import LoRAInfo, LoRARequest

from .plan import LoRALoad


@dataclass(slots=True)
class _Known:
    """requests: those that have not ended."""

    info: LoRAInfo
    pinned: bool
    requests: int = 0


class Adapters:
    """Those that are known; one for all copies of a model. Schedulers tell it of every request.

    Without a configuration nothing is known and nothing checked: requests may name any adapter, or none.
    """

    def __init__(self, config: LoRAConfig | None = None) -> None:
        self.config = config
        self._by_name: OrderedDict[str, _Known] = OrderedDict()  # the least recently used first
        self._by_id: dict[str, _Known] = {}

    def get(self, name: str) -> LoRAInfo | None:
        found = self._by_name.get(name)
        return None if found is None else self._info(found)

    def infos(self) -> list[LoRAInfo]:
        """All of them, by name."""
        return [self._info(self._by_name[name]) for name in sorted(self._by_name)]

    def find(self, request: LoRARequest) -> LoRAInfo | None:
        """The adapter that a request means, if it is known; None where it must be read from its path.

        Raises:
            RequestError: no path was given; or the name is that of another adapter, which was added or is wanted.
        """
        known = self.get(request.lora_name)
        if known is None and request.lora_path is None:
            raise self._unknown(request.lora_name)
        if known is None or request.lora_path in (None, known.path):
            return known
        if known.pinned or known.requests:
            raise RequestError(
                f"the name {known.name} is that of another adapter", code="ADAPTER_NAME_TAKEN", field="lora_path",
                value=request.lora_path, limit=f"{known.path}, or another name",
                fix="another name, or remove_lora when nobody wants the first one any more",
            )  # fmt: skip
        return None

    def outgoing(self, name: str) -> str | None:
        """The adapter that makes room for one called `name`: its namesake, or the one that gives way; None where there
        is room.

        Raises:
            RequestError: there is no room, and none gives way.
        """
        if name in self._by_name:
            return name
        if self.config is None or len(self._by_name) < self.config.max_cpu_loras:
            return None
        for known in self._by_name.values():
            if not known.pinned and not known.requests:
                return known.info.name
        raise RequestError(
            f"{len(self._by_name)} adapters are known, and all are wanted",
            code="TOO_MANY_ADAPTERS", field="lora_request", limit=f"max_cpu_loras={self.config.max_cpu_loras}",
            fix="remove_lora(name) for one that is not needed, or more max_cpu_loras",
        )  # fmt: skip

    def add(self, info: LoRAInfo, *, pinned: bool) -> None:
        """Know an adapter whose name is free."""
        if info.name in self._by_name:
            raise EngineError(f"there is an adapter called {info.name} already")
        self._by_name[info.name] = self._by_id[info.lora_id] = _Known(info, pinned)

    def pin(self, name: str) -> None:
        """Keep an adapter until it is removed."""
        self._by_name[name].pinned = True

    def remove(self, name: str) -> LoRAInfo:
        """Forget an adapter.

        Raises:
            RequestError: there is none of this name, or a request wants it.
        """
        found = self._by_name.get(name)
        if found is None:
            raise self._unknown(name)
        if found.requests:
            raise RequestError(
                f"adapter {name} is in use", code="ADAPTER_IN_USE", field="lora_name", value=name,
                limit="no unfinished request", fix=f"wait until {found.requests} request(s) have ended, or abort them",
            )  # fmt: skip
        del self._by_name[name], self._by_id[found.info.lora_id]
        return found.info

    def begin(self, lora_id: str | None) -> None:
        """A request that wants the adapter is queued."""
        if self.config is None or lora_id is None:
            return
        found = self._by_id.get(lora_id)
        if found is None:
            raise EngineError(f"adapter {lora_id} was not added")
        found.requests += 1
        self._by_name.move_to_end(found.info.name)

    def end(self, lora_id: str | None) -> None:
        """It has ended."""
        if self.config is not None and lora_id is not None:
            self._by_id[lora_id].requests -= 1

    def _info(self, known: _Known) -> LoRAInfo:
        return replace(known.info, pinned=known.pinned, requests=known.requests)

    def _unknown(self, name: str) -> RequestError:
        names = ", ".join(sorted(self._by_name)) or "none"
        return RequestError(
            "there is no adapter of this name", code="UNKNOWN_ADAPTER", field="lora_name", value=name,
            limit=f"known: {names[:500]}", fix="LoRARequest(name, lora_path=…), or add_lora",
        )  # fmt: skip


class SlotTable:
    """Which adapter is in which slot of one copy of the model; owned by its scheduler.

    Args:
        size: how many slots; None: nothing has to be in one.
    """

    def __init__(self, size: int | None) -> None:
        self._size = size
        self._slots: OrderedDict[str, int] = OrderedDict()  # adapter → slot, the least recently used first
        self._holders: Counter[str] = Counter()
        self._loads: dict[int, str] = {}  # slot → what the next plan puts there

    def slot_of(self, lora_id: str) -> int | None:
        return self._slots.get(lora_id)

    def has_place(self, lora_id: str) -> bool:
        """Whether `hold` would find a slot."""
        return self._size is None or lora_id in self._slots or self._free_slot() is not None

    def hold(self, lora_id: str | None) -> None:
        """A request begins to run; its adapter is put into a slot, unless it is in one."""
        if lora_id is None or self._size is None:
            return
        if lora_id not in self._slots:
            slot = self._free_slot()
            if slot is None:
                raise EngineError(f"no slot is free for adapter {lora_id}")
            self._slots = OrderedDict((other, place) for other, place in self._slots.items() if place != slot)
            self._slots[lora_id] = slot
            self._loads[slot] = lora_id
        self._holders[lora_id] += 1
        self._slots.move_to_end(lora_id)

    def release(self, lora_id: str | None) -> None:
        """It runs no more: it has ended, or lost its blocks."""
        if lora_id is not None and self._size is not None:
            self._holders[lora_id] -= 1
            self._slots.move_to_end(lora_id)

    def forget(self, lora_id: str) -> None:
        """The adapter was removed; its slot is free."""
        slot = self._slots.pop(lora_id, None)
        if slot is not None:
            self._loads.pop(slot, None)
        self._holders.pop(lora_id, None)

    def take_loads(self) -> tuple[LoRALoad, ...]:
        """What must be put into slots before the step that is being planned."""
        loads = tuple(LoRALoad(slot, lora_id) for slot, lora_id in sorted(self._loads.items()))
        self._loads.clear()
        return loads

    def give_back(self, loads: tuple[LoRALoad, ...]) -> None:
        """The plan with these loads failed: what still holds is said again."""
        for slot, lora_id in loads:
            if self._slots.get(lora_id) == slot:
                self._loads[slot] = lora_id

    def _free_slot(self) -> int | None:
        """An empty slot, or that of the least recently used adapter that nobody holds."""
        taken = set(self._slots.values())
        empty = next((slot for slot in range(self._size or 0) if slot not in taken), None)
        if empty is not None:
            return empty
        return next((slot for lora_id, slot in self._slots.items() if not self._holders[lora_id]), None)
