"""`POST /v1/embeddings`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from .base import WHOLE, Reply, Request
from .completions import PROMPTS_SCHEMA, as_prompts


def _as_inputs(given: object) -> list[str | list[int]]:
    return as_prompts(given, "input")


class EmbeddingsRequest(Request):
    IGNORED: ClassVar[frozenset[str]] = frozenset({"user"})

    input: Annotated[list[Any], BeforeValidator(_as_inputs), WithJsonSchema(PROMPTS_SCHEMA)]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**20), WHOLE] | None = None
    normalize: bool | None = None
    priority: Annotated[int, Field(ge=-(2**31) + 1, le=2**31 - 1), WHOLE] | None = None
    user: Any = None


class Embedding(Reply):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Reply):
    prompt_tokens: int
    total_tokens: int


class Embeddings(Reply):
    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
