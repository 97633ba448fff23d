"""What every stream of events has: chunks made of a template, usage where it is wanted, one terminal event."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from bestiary.api.errors import BestiaryError

from .documents import encode
from .errors import document, internal_error
from .generations import aborting
from .schemas.sampling import StreamOptions
from .sse import EventStream, event

if TYPE_CHECKING:
    from bestiary.serve.generation import Generation

    from .service import Call


def stream(call: Call, generations: Sequence[Generation], events: AsyncGenerator[bytes, None]) -> EventStream:
    """The response that sends `events`; whatever ends it, none of the generations runs on, and it is counted."""
    options = call.service.options
    return EventStream(
        _guarded(call, generations, events),
        headers=call.headers(),
        write_timeout=options.write_timeout,
        heartbeat=options.heartbeat,
    )


class Told(Exception):
    """The stream failed, and has said so in its own way."""


async def _guarded(
    call: Call, generations: Sequence[Generation], events: AsyncGenerator[bytes, None]
) -> AsyncGenerator[bytes, None]:
    outcome = "aborted"
    with aborting(generations):
        try:
            async for piece in events:
                yield piece
            outcome = "finished"
        except Told:
            outcome = "failed"
        except BestiaryError as error:
            outcome = "failed"
            logging.getLogger("bestiary.http").warning("an answer failed: %s request=%s", error.error_code, call.id)
            yield event(encode(document(error, call.id)))
        except Exception:
            outcome = "failed"
            logging.getLogger("bestiary.http").exception("a stream failed request=%s", call.id)
            yield event(encode(document(internal_error(), call.id)))
        finally:
            await events.aclose()
            call.end(outcome)


class Chunks:
    """Chunks of one stream as bytes. What does not change from one to the next is encoded once.

    Args:
        fields: what each chunk begins with. delta: the name under which a choice's new text stands when there is
            nothing but text, as ``{"content": TEXT}`` or plainly.
    """

    def __init__(self, fields: dict[str, Any], options: StreamOptions | None) -> None:
        self._fields = fields
        self.continuous = options is not None and bool(options.continuous_usage_stats)
        self.final_usage = options is not None and bool(options.include_usage)
        self._head = b"data: " + encode(fields)[:-1] + b',"choices":[{"index":'
        self._tail = b',"usage":null}\n\n' if self.final_usage else b"}\n\n"

    def text(self, opening: bytes, text: str, closing: bytes) -> bytes:
        """A chunk of one choice around a piece of text."""
        return b"".join((self._head, opening, encode(text), closing, self._tail))

    def choice(self, choice: dict[str, Any], usage: dict[str, Any] | None = None) -> bytes:
        """A chunk of one choice, whatever it holds."""
        chunk = self._fields | {"choices": [choice]}
        if usage is not None or self.final_usage:
            chunk["usage"] = usage
        return event(encode(chunk))

    def usage(self, usage: dict[str, Any]) -> bytes:
        """The chunk that closes a stream whose client wants to know."""
        return event(encode(self._fields | {"choices": [], "usage": usage}))
