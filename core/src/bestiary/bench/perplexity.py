"""`bench perplexity`: how well a model predicts a text, as it is and under other number formats.

The text's tokens are cut into windows that overlap. Each window scores the tokens that no earlier one has scored, so
that every token counts once, and all but those of the first window see at least ``window - stride`` tokens before them.
Perplexity is e to the power of the mean negative log-probability; log-probabilities are the engine's own.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bestiary.api.errors import EngineError, UsageError
from bestiary.api.sampling import SamplingParams
from bestiary.engine.model_layers import kv_cache_specs

from .subject import model_of

if TYPE_CHECKING:
    from bestiary.serve.llm import LLM
    from bestiary.serve.text.tokenizer import Tokenizer

TEXT = Path(__file__).with_name("perplexity.txt")
"""Our own prose on medieval bestiaries, 1,241 words: no model was trained on it before it was published here."""

DEFAULT_WINDOW = 1024
_KV = "kv="


@dataclass(frozen=True, kw_only=True)
class PerplexityWork:
    """text: a file of UTF-8. window, stride: in tokens; None: `DEFAULT_WINDOW` or the context, and half of a window."""

    text: Path = TEXT
    window: int | None = None
    stride: int | None = None

    def read(self) -> str:
        """The text. Raises `UsageError` where there is none."""
        try:
            return self.text.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{self.text.name} cannot be read: {error}", field="text", limit="a file of UTF-8 text"
            ) from error


@dataclass(frozen=True, slots=True)
class Perplexity:
    """One format's figures.

    Attributes:
        tokens: how many were scored. nats_per_token: the mean of -ln p. perplexity: e to the power of that.
        weight_bytes: of the model in memory. kv_bytes_per_token: of its cache. seconds: all windows took.
    """

    tokens: int
    nats_per_token: float
    perplexity: float
    weight_bytes: int
    kv_bytes_per_token: int
    seconds: float


class Window(NamedTuple):
    """Tokens ``begin … end - 1`` of the text; those from `scored` on are scored."""

    begin: int
    scored: int
    end: int


def windows(count: int, window: int, stride: int) -> Iterator[Window]:
    """Windows over `count` tokens, each beginning `stride` after the one before it."""
    begin = scored = 0
    while scored < count:
        end = min(begin + window, count)
        yield Window(begin, scored, end)
        begin, scored = begin + stride, end


def engine_changes(method: str) -> dict[str, str]:
    """``int8``, ``kv=fp8`` or ``int8+kv=fp8`` → arguments of the engine.

    Raises:
        UsageError: two of one kind, or an empty part.
    """
    found: dict[str, str] = {}
    for part in method.split("+"):
        name, value = ("kv_cache_dtype", part.removeprefix(_KV)) if part.startswith(_KV) else ("quantization", part)
        if not value or name in found:
            raise UsageError(
                "this is no method", field="method", value=method,
                limit="a quantization method, kv=DTYPE, or both with + between them",
            )  # fmt: skip
        found[name] = value
    return found


def measure_perplexity(llm: LLM, work: PerplexityWork) -> tuple[Perplexity, dict[str, Any]]:
    """The figures of a loaded model, and what exactly was measured."""
    text = work.read()
    prefix, ids = _tokens(llm.get_tokenizer(), text)
    window, stride = _sizes(work, llm.vllm_config.model_config.max_model_len - 1 - len(prefix))
    if len(prefix) + len(ids) < 2:
        raise UsageError("this text has no token to predict", field="text", value=len(ids), limit="at least 2 tokens")
    start = time.perf_counter()
    losses = [loss for each in windows(len(ids), window, stride) for loss in _losses(llm, prefix, ids, each)]
    seconds = time.perf_counter() - start
    mean = math.fsum(losses) / len(losses)
    if not math.isfinite(mean):
        raise EngineError("some token of the text has no finite log-probability", value=mean)
    model = model_of(llm)
    figures = Perplexity(
        tokens=len(losses),
        nats_per_token=mean,
        perplexity=math.exp(mean),
        weight_bytes=sum(parameter.nbytes for parameter in model.parameters()),
        kv_bytes_per_token=sum(spec.bytes_per_token for spec in kv_cache_specs(model).values()),
        seconds=seconds,
    )
    workload = {
        "text": work.text.name, "sha256": hashlib.sha256(text.encode()).hexdigest(), "tokens": len(ids),
        "scored": len(losses), "before_each_window": prefix, "window": window, "stride": stride,
    }  # fmt: skip
    return figures, workload


def compared(results: Mapping[str, Perplexity]) -> dict[str, dict[str, Any]]:
    """The figures as data, each with its distance from the first: in nats a token, and as a share of perplexity."""
    first = next(iter(results.values()))
    return {
        name: {
            **asdict(each),
            "nats_more": each.nats_per_token - first.nats_per_token,
            "perplexity_more": math.expm1(each.nats_per_token - first.nats_per_token),
        }
        for name, each in results.items()
    }


def _tokens(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before a text (BOS, as a rule), which every window gets, and the text's own tokens."""
    own, whole = tokenizer.encode(text, add_special_tokens=False), tokenizer.encode(text)
    before = next((at for at in range(len(whole) - len(own) + 1) if whole[at : at + len(own)] == own), 0)
    return whole[:before], own


def _sizes(work: PerplexityWork, longest: int) -> tuple[int, int]:
    window = min(DEFAULT_WINDOW, longest) if work.window is None else work.window
    if not 2 <= window <= longest:
        raise UsageError("a window does not fit the context", field="window", value=window, limit=f"2 to {longest}")
    stride = window // 2 if work.stride is None else work.stride
    if not 1 <= stride < window:
        raise UsageError("windows must overlap", field="stride", value=stride, limit=f"1 to {window - 1}")
    return window, stride


def _losses(llm: LLM, prefix: list[int], ids: Sequence[int], window: Window) -> Iterator[float]:
    """-ln p of each token that the window scores; without a prefix the first of all follows nothing, and has none."""
    prompt = [*prefix, *ids[window.begin : window.end]]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    (output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
    entries = output.prompt_logprobs
    if entries is None:
        raise EngineError("the engine gave no log-probabilities of the prompt", value=output.outputs[0].stop_reason)
    for at in range(len(prefix) + window.scored - window.begin, len(prompt)):
        entry = entries[at]
        if entry is not None:
            yield -entry[prompt[at]].logprob
