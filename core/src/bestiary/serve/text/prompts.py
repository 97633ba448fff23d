"""The shapes a prompt may come in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bestiary.api.errors import RequestError, UsageError

if TYPE_CHECKING:
    from .tokenizer import Tokenizer

Prompt = str | Mapping[str, Any] | Sequence[int]
"""Text, ``{"prompt": text}``, ``{"prompt_token_ids": ids}``, or token ids."""


def as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or a list of them, as a list. A list of integers is one prompt."""
    if isinstance(prompts, str | Mapping):
        return [prompts]
    if isinstance(prompts, bytes | bytearray) or not isinstance(prompts, Sequence):
        raise RequestError(
            "prompts have no usable form", field="prompts", value=type(prompts).__name__,
            limit="text, a mapping with 'prompt' or 'prompt_token_ids', token ids, or a list of these",
        )  # fmt: skip
    if prompts and all(isinstance(each, int) and not isinstance(each, bool) for each in prompts):
        return [list(prompts)]  # type: ignore[arg-type]
    return list(prompts)  # type: ignore[arg-type]


def prompt_ids(prompt: Prompt, tokenizer: Tokenizer | None, index: int) -> tuple[str | None, Sequence[int]]:
    """A prompt's text, where it has one, and its token ids. `index` names it in errors."""
    if isinstance(prompt, Mapping):
        unknown = set(prompt) - {"prompt", "prompt_token_ids"}
        if unknown or len(prompt) == 0:
            raise _refused(index, prompt, "a mapping with 'prompt' or 'prompt_token_ids'")
        if "prompt_token_ids" in prompt:
            text = prompt.get("prompt")
            if text is not None and not isinstance(text, str):
                raise _refused(index, text, "a text beside 'prompt_token_ids'")
            return text, _ids(prompt["prompt_token_ids"], index)
        prompt = prompt["prompt"]
    if not isinstance(prompt, str):
        return None, _ids(prompt, index)
    if tokenizer is None:
        raise UsageError(
            "a text prompt needs a tokenizer",
            field="skip_tokenizer_init",
            fix='pass {"prompt_token_ids": [...]}, or skip_tokenizer_init=False',
        )
    return prompt, tokenizer.encode(prompt)


def _ids(value: object, index: int) -> Sequence[int]:
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Sequence):
        raise _refused(index, value, "a list of token ids")
    return value


def _refused(index: int, value: object, rule: str) -> RequestError:
    return RequestError(f"prompt {index} has no usable form", field=f"prompts[{index}]", value=value, limit=rule)
