"""`GET /health/live`: this process answers. `GET /health/ready`: so does the engine. `GET /health` is the latter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .documents import encode

if TYPE_CHECKING:
    from .service import Call


async def live(call: Call) -> Any:
    from starlette.responses import Response

    return Response(encode({"status": "ok"}), media_type="application/json")


async def ready(call: Call) -> Any:
    """200 when requests are taken; otherwise 503 and the state."""
    from starlette.responses import Response

    llm = call.service.llm
    good = llm.state == "ready"
    document: dict[str, Any] = {"status": "ok" if good else llm.state}
    if not good and llm.error is not None:
        document["code"] = llm.error.error_code
    headers = {} if good else {"retry-after": "1"}
    return Response(encode(document), 200 if good else 503, headers, "application/json")
