"""`AdapterLibrary`: the engine's adapters, on all ranks alike.

Every rank reads its own part of an adapter. Rank 0 tells the others at once, and then all say whether it fits; where
one of them refuses, none keeps it, and the error is the same on all. Removing takes nobody's time, so it is told with
the next step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from bestiary.api.errors import BadAdapter, BestiaryError, RequestError
from bestiary.api.lora import LoRAInfo, LoRARequest

from .adapters import Adapters
from .executor import Executor
from .lanes import Lanes
from .parallel.messages import AddAdapter, PinAdapter, RemoveAdapter

if TYPE_CHECKING:
    from .parallel.team import Team


class AdapterLibrary:
    """Owned by the engine. `refused`: why the last adapter that was read was not kept."""

    def __init__(self, adapters: Adapters, lanes: Lanes, executor: Executor, team: Team | None) -> None:
        self._adapters = adapters
        self._lanes, self._executor, self._team = lanes, executor, team
        self.refused: BadAdapter | None = None

    def find(self, request: LoRARequest) -> LoRAInfo | None:
        """The adapter that a request means; None where it must be read first. Raises as `Adapters.find`."""
        if self._adapters.config is None:
            raise RequestError(
                "this engine has no slots for adapters", code="LORA_DISABLED", field="lora_request",
                value=request.lora_name, fix="LLM(…, enable_lora=True), or --lora NAME=PATH on the command line",
            )  # fmt: skip
        return self._adapters.find(request)

    def add(self, request: LoRARequest, *, pinned: bool) -> LoRAInfo:
        """Make an adapter known, on rank 0 for all. One that is known already is only looked up.

        Raises:
            BadAdapter: it is damaged or does not fit, and nothing was changed. RequestError: its name is taken, or
                there is no room.
        """
        known = self.find(request)
        if known is None:
            self._adapters.outgoing(request.lora_name)  # raises where there is no room
            event = AddAdapter(request.lora_name, str(request.lora_path), pinned)
            if self._team is not None:
                self._team.note(event)
                self._team.tell(step=False)
            known = self.read(event)
        elif pinned and not known.pinned:
            self._note(PinAdapter(known.name))
            self._adapters.pin(known.name)
        return self._seen(known)

    def remove(self, name: str) -> LoRAInfo:
        """Forget an adapter, on rank 0 for all. Raises `RequestError` as `Adapters.remove`."""
        info = self.forget(name)
        self._note(RemoveAdapter(name))
        return info

    def infos(self) -> list[LoRAInfo]:
        return [self._seen(info) for info in self._adapters.infos()]

    # --- on every rank ----------------------------------------------------------------------------------------------

    def read(self, event: AddAdapter) -> LoRAInfo:
        """Read an adapter together with the other ranks. Raises `BadAdapter` on all of them, or on none."""
        self.refused = None
        outgoing = self._adapters.outgoing(event.name)
        trouble: BestiaryError | None = None
        info: LoRAInfo | None = None
        try:
            info = self._executor.add_adapter(event.name, event.path)
        except BadAdapter as error:
            trouble = error
        except (OSError, MemoryError, RuntimeError, ValueError) as cause:
            trouble = BadAdapter(f"it cannot be read: {type(cause).__name__}: {cause}", field=event.path)
            trouble.__cause__ = cause
        trouble = self._agreed(info, trouble)
        if info is None or trouble is not None:
            if info is not None:
                self._executor.remove_adapter(info.lora_id)
            self.refused = trouble if isinstance(trouble, BadAdapter) else BadAdapter("it was refused")
            raise self.refused
        if outgoing is not None:
            self.forget(outgoing, but=info.lora_id)
        self._adapters.add(info, pinned=event.pinned)
        return replace(info, pinned=event.pinned)

    def pin(self, name: str) -> None:
        self._adapters.pin(name)

    def forget(self, name: str, but: str | None = None) -> LoRAInfo:
        """Forget an adapter; the executor keeps the one whose id is `but`."""
        info = self._adapters.remove(name)
        for lane in self._lanes.lanes:
            lane.scheduler.forget_adapter(info.lora_id)
        if info.lora_id != but:
            self._executor.remove_adapter(info.lora_id)
        return info

    def id_of(self, name: str | None) -> str | None:
        """The id of an adapter that is known."""
        found = None if name is None else self.find(LoRARequest(name))
        return None if found is None else found.lora_id

    def _agreed(self, info: LoRAInfo | None, trouble: BestiaryError | None) -> BestiaryError | None:
        """This rank's trouble, or that of another; None where there is none anywhere."""
        if self._team is None:
            return trouble
        told = self._team.first_trouble(trouble)
        if told is not None:
            return trouble or BadAdapter(
                told["message"], code=told["code"], field=told["field"], limit=told["rule"], value=told["value"],
                details=told["details"], fix=told["fix"],
            )  # fmt: skip
        if info is not None and not self._team.is_same(int(info.digest[:15], 16)):
            return BadAdapter(
                "the ranks have different files under this path", field=info.path, limit="the same on every machine"
            )
        return None

    def _note(self, event: PinAdapter | RemoveAdapter) -> None:
        if self._team is not None and self._team.leads:
            self._team.note(event)

    def _seen(self, info: LoRAInfo) -> LoRAInfo:
        return replace(info, slot=self._lanes.lanes[0].scheduler.slot_of(info.lora_id))
