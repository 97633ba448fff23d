"""`POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`: off unless a directory of adapters was named.

What a client writes is a path below that directory. It is resolved, links included, before anything is opened, so that
nothing else on this machine can be named.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bestiary.api.errors import RequestError

from .documents import answer
from .models import described
from .schemas.lora import LoadAdapterRequest, UnloadAdapterRequest

if TYPE_CHECKING:
    from .service import Call


async def load_adapter(call: Call) -> Any:
    """Read an adapter, and answer with the model that it makes."""
    request = await call.body(LoadAdapterRequest)
    service = call.service
    root = _directory(call)
    if request.lora_name in service.ids():
        raise RequestError(
            "a model of this name is served already",
            code="ADAPTER_NAME_TAKEN",
            field="lora_name",
            value=request.lora_name,
        )
    path = await asyncio.to_thread(below, root, request.lora_path)
    await service.llm.add_lora(request.lora_name, str(path))
    return answer(call, next(each for each in described(service) if each["id"] == request.lora_name))


async def unload_adapter(call: Call) -> Any:
    """Forget an adapter."""
    request = await call.body(UnloadAdapterRequest)
    _directory(call)
    await call.service.llm.remove_lora(request.lora_name)
    return answer(call, {"id": request.lora_name, "object": "model", "deleted": True})


def below(root: Path, given: str) -> Path:
    """The directory that `given` names below `root`. Raises `LORA_PATH` for every other place, and for none."""
    try:
        root, found = root.resolve(), (root / given).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # no such thing, a NUL, a name too long, a loop of links
        raise _refused(given) from None
    if Path(given).is_absolute() or found == root or not found.is_relative_to(root) or not found.is_dir():
        raise _refused(given)
    return found


def _refused(given: str) -> RequestError:
    return RequestError(
        "there is no such adapter", code="LORA_PATH", field="lora_path", value=given,
        limit="a directory below --lora-dir, relative to it",
    )  # fmt: skip


def _directory(call: Call) -> Path:
    root = call.service.options.lora_dir
    if root is None:
        raise RequestError(
            "adapters are not loaded at run time here", code="RUNTIME_LORA_OFF", field="lora_name",
            fix="start with --enable-runtime-lora --lora-dir DIRECTORY",
        )  # fmt: skip
    return root
