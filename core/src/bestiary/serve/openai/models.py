"""`GET /v1/models` and `GET /v1/models/{id}`: the model under its names, and its adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bestiary.api.errors import RequestError

from .documents import answer

if TYPE_CHECKING:
    from .service import Call, Service


async def list_models(call: Call) -> Any:
    return answer(call, {"object": "list", "data": described(call.service)})


async def retrieve_model(call: Call) -> Any:
    """One of them. Raises `MODEL_NOT_FOUND`, listing the ids."""
    wanted = call.http.path_params["model"]
    for each in described(call.service):
        if each["id"] == wanted:
            return answer(call, each)
    raise RequestError(
        "no such model is served here", code="MODEL_NOT_FOUND", field="model", value=wanted,
        limit=", ".join(call.service.ids()),
    )  # fmt: skip


def described(service: Service) -> list[dict[str, Any]]:
    root, info = service.names[0], service.llm.info
    longest = None if info is None else info.max_model_len
    shared = {"object": "model", "created": int(service.started), "owned_by": "bestiary", "max_model_len": longest}
    models = [{"id": name, **shared, "root": root, "parent": None} for name in service.names]
    return models + [{"id": each.name, **shared, "root": root, "parent": root} for each in service.llm.list_loras()]
