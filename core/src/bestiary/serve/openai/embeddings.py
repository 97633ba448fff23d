"""`POST /v1/embeddings`: a vector for each text, of a model that was started to make vectors."""

from __future__ import annotations

import base64
import sys
from array import array
from typing import TYPE_CHECKING, Any

from bestiary.api.pooling import PoolingParams

from .documents import answer
from .field_names import about_prompt
from .generations import aborting, finished
from .prompting import encoded
from .schemas.embeddings import EmbeddingsRequest

if TYPE_CHECKING:
    from bestiary.serve.generation import PoolingGeneration

    from .service import Call, Target


async def embeddings(call: Call) -> Any:
    """Embed texts or token ids."""
    request = await call.body(EmbeddingsRequest)
    target = call.service.target(request)
    outputs = await finished(call.http, await _accept(call, request, target))
    as_text = request.encoding_format == "base64"
    tokens = sum(len(output.prompt_token_ids) for output in outputs)
    return answer(
        call,
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _vector(output.outputs.data, as_text)}
                for index, output in enumerate(outputs)
            ],
            "model": target.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        },
    )


async def _accept(call: Call, request: EmbeddingsRequest, target: Target) -> list[PoolingGeneration]:
    """Submit every text, or none."""
    call.service.llm.check_open(len(request.input))
    params = PoolingParams(
        task="embed", normalize=request.normalize is not False, dimensions=request.dimensions
    )  # fmt: skip
    prompts = await encoded(call.service, "input", request.input)
    id_ = call.new_id("embd-")
    found: list[PoolingGeneration] = []
    try:
        for index, (text, token_ids) in enumerate(prompts):
            with about_prompt("input", index if len(prompts) > 1 else None, is_text=text is not None):
                generation = call.service.llm.submit_pooling(
                    f"{id_}-{index}", token_ids, params, prompt=text, priority=request.priority or 0,
                    cache_salt=call.salt(None), lora_name=target.lora_name,
                )  # fmt: skip
            found.append(generation)
            call.service.metrics.prompt(len(token_ids))
    except BaseException:
        with aborting(found):
            raise
    return found


def _vector(numbers: list[float], as_text: bool) -> list[float] | str:
    """The numbers, or their 32-bit floats, little-endian, in base64."""
    if not as_text:
        return numbers
    data = array("f", numbers)
    if sys.byteorder == "big":
        data.byteswap()
    return base64.b64encode(data.tobytes()).decode()
