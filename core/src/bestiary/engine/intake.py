"""`Intake`: what users ask of an engine, once it is known that it can be done: on every rank alike, in one order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

from bestiary.api.sampling import SamplingParams
from bestiary.api.structured import StructuredOutputBackend, Vocabulary

from .checks import RequestChecks, unavailable
from .executor import Executor
from .lanes import Lanes
from .library import AdapterLibrary
from .parallel.messages import AddRequest, EndRequest
from .sequence import Sequence, SequenceUpdate


class Intake:
    """Owned by the engine.

    Attributes:
        checks: what requests must satisfy.
        library: the adapters that they may name.
        has_tokenizer: whether answers may have a form.
    """

    def __init__(
        self,
        checks: RequestChecks,
        lanes: Lanes,
        library: AdapterLibrary,
        executor: Executor,
        *,
        seed: int,
        make_backend: Callable[[Vocabulary], StructuredOutputBackend] | None,
    ) -> None:
        """`seed`: of requests that bring none. `make_backend`: what enforces the forms of answers."""
        self.checks = checks
        self.library = library
        self.has_tokenizer = False
        self._lanes, self._executor = lanes, executor
        self._seed = seed
        self._make_backend = make_backend

    def admit(self, request: AddRequest) -> list[str]:
        """Queue all answers of a request, or none; returns the ids under which updates come."""
        sampling, sequences = request.sampling, list[Sequence]()
        lora_id = self.library.id_of(request.lora_name)
        children = request.answers
        for index, child in enumerate(children):
            own = sampling if sampling.n == 1 else sampling.child(index)
            sequences.append(
                Sequence(
                    child,
                    request.prompt_token_ids,
                    own,
                    seed=self._seed_of(child, own),
                    priority=request.priority,
                    eos_token_ids=self.checks.eos_token_ids,
                    cache_salt=request.cache_salt,
                    lora_name=lora_id,
                    leader=sequences[0] if sequences else None,
                    pooling=request.pooling,
                )
            )
        self._lanes.add(*sequences)
        return children

    def end(self, event: EndRequest) -> SequenceUpdate | None:
        """End an answer; None if it had ended already."""
        return self._lanes.finish(event.request_id, event.reason, event.stop_reason)

    def use_eos_tokens(self, ids: tuple[int, ...]) -> None:
        """What ends an answer, from now on."""
        self.checks = replace(self.checks, eos_token_ids=frozenset(ids))

    def use_tokenizer(self, tokenizer_json: str) -> None:
        """What the tokens stand for, for answers with a form. Raises `RequestError` where nothing enforces any."""
        make = self._make_backend
        if make is None:
            raise unavailable()
        vocabulary = Vocabulary(tokenizer_json, self.checks.vocab_size, tuple(sorted(self.checks.eos_token_ids)))
        self._executor.use_backend(lambda: make(vocabulary))
        self.has_tokenizer = True

    def _seed_of(self, request_id: str, sampling: SamplingParams) -> int:
        if sampling.seed is not None:
            return sampling.seed
        key = f"{self._seed}/{request_id}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
