"""`POST /v1/load_lora_adapter` and `POST /v1/unload_lora_adapter`, with vLLM's names."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field

from bestiary.api.lora import MAX_NAME_CHARS, MAX_PATH_CHARS

from .base import Request

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]


class LoadAdapterRequest(Request):
    IGNORED: ClassVar[frozenset[str]] = frozenset({"load_inplace", "lora_int_id", "base_model_name"})

    lora_name: Name
    lora_path: Annotated[str, Field(min_length=1, max_length=MAX_PATH_CHARS)]
    load_inplace: Any = None
    lora_int_id: Any = None
    base_model_name: Any = None


class UnloadAdapterRequest(Request):
    IGNORED: ClassVar[frozenset[str]] = frozenset({"lora_int_id"})

    lora_name: Name
    lora_int_id: Any = None
