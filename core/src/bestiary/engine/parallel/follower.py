"""`Follower`: a rank that does what rank 0 says, and compares it with what it was asked itself."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from bestiary.api.config import VllmConfig
from bestiary.api.errors import BadAdapter, EngineError
from bestiary.api.lora import LoRAInfo, LoRARequest
from bestiary.engine.intake import Intake

from .agreement import plan_settings, refuse_other_settings
from .messages import AddAdapter, AddRequest, EndRequest, Event, PinAdapter, RemoveAdapter, Settings, UseTokenizer

if TYPE_CHECKING:
    from .team import Team


class Follower:
    """Owned by the engine of any rank but the first."""

    def __init__(self, team: Team, intake: Intake, config: VllmConfig) -> None:
        self._team = team
        self._intake = intake
        self._config = config
        self._expected: dict[str, AddRequest] = {}

    def expect(self, request: AddRequest) -> None:
        """This rank's script has asked for it; it is admitted when rank 0 says so."""
        self._expected[request.request_id] = request

    def hear_step(self) -> None:
        """Do what rank 0 says, until it begins a step."""
        while not self._hear():
            pass

    def hear_of(self, request: LoRARequest) -> LoRAInfo:
        """Do what rank 0, whose script does the same, says, until it has had an adapter read. Raises `BadAdapter`."""
        library = self._intake.library
        while (known := library.find(request)) is None:
            library.refused = None
            self._hear()
            if library.refused is not None:
                raise library.refused
        return known

    def _hear(self) -> bool:
        """Do what rank 0 says; whether it begins a step."""
        tick = self._team.hear()
        for event in tick.events:
            self._do(event)
        return tick.step

    def _do(self, event: Event) -> None:
        intake, library = self._intake, self._intake.library
        if isinstance(event, AddRequest):
            self._compare(event)
            intake.admit(event)
        elif isinstance(event, Settings):
            intake.use_eos_tokens(event.eos_token_ids)
            refuse_other_settings(event.values, plan_settings(self._config), self._team.rank)
        elif isinstance(event, UseTokenizer):
            intake.use_tokenizer(event.tokenizer_json)
        elif isinstance(event, EndRequest):
            intake.end(event)
        elif isinstance(event, AddAdapter):
            with suppress(BadAdapter):  # rank 0 says it
                library.read(event)
        elif isinstance(event, PinAdapter):
            library.pin(event.name)
        elif isinstance(event, RemoveAdapter):
            library.forget(event.name)
        else:
            raise EngineError("rank 0 has closed the engine", code="CLOSED")

    def _compare(self, request: AddRequest) -> None:
        own = self._expected.pop(request.request_id, request)
        if own != request:
            raise EngineError(
                f"rank {self._team.rank} was given another request than rank 0", code="RANKS_DISAGREE",
                field=request.request_id, fix="give every rank the same requests, or serve from rank 0 alone",
            )  # fmt: skip
