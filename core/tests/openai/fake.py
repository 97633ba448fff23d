"""A model for the HTTP layer's tests: the interface of `AsyncLLM`, answers from a script, no engine."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace

from bestiary.api.errors import EngineError, RequestError
from bestiary.api.lora import LoRAInfo
from bestiary.api.outputs import CompletionOutput, Logprob, RequestOutput
from bestiary.engine.arguments import EngineArgs
from bestiary.serve.text.chat_template import render_chat
from bestiary.serve.text.tokenizer import Tokenizer

CONTEXT = 256
TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>{% endif %}"
)
ANSWER = "Grüße from the 🦁 & the bear."


@cache
def tokenizer() -> Tokenizer:
    """Byte-level, so every text has ids, and a character may need several."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *alphabet, "th", "the"])}
    backend = Backend(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    return Tokenizer(backend, bos_token_id=0, eos_token_id=1, chat_template=TEMPLATE)


@dataclass
class Script:
    """How the next requests go.

    pace: awaited before each token. fail: (tokens, code) after which a request dies.
    """

    answer: str = ANSWER
    fail: tuple[int, str] | None = None
    pace: asyncio.Event | None = None
    finish: str | None = None


@dataclass(eq=False)
class FakeGeneration:
    llm: FakeLLM
    output: RequestOutput
    sampling: object
    error: EngineError | None = None
    aborted: bool = False
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task | None = None

    async def __aiter__(self):
        while True:
            await self._changed.wait()
            self._changed.clear()
            yield self.output
            if self.output.finished:
                return

    def abort(self) -> None:
        if not self.output.finished:
            self.aborted = True
            self._task.cancel()
            self.end("abort")

    def end(self, reason, stop=None) -> None:
        for each in self.output.outputs:
            if each.finish_reason is None:
                each.finish_reason, each.stop_reason = reason, stop
        self.output.finished = True
        self.llm.live.discard(self)
        self._changed.set()


class FakeLLM:
    def __init__(self, name: str = "tiny") -> None:
        self.args = EngineArgs(model=name)
        self.tokenizer = tokenizer()
        self.info = SimpleNamespace(max_model_len=CONTEXT)
        self.status = SimpleNamespace(state="ready", error=None, pids=(), restarts=0)
        self.script = Script()
        self.refuse: Exception | None = None
        self.submitted: list[dict] = []
        self.rendered: list[dict] = []
        self.generations: list[FakeGeneration] = []
        self.live: set[FakeGeneration] = set()
        self.loras: dict[str, LoRAInfo] = {}

    def submit(self, request_id, prompt_token_ids, sampling, **options) -> FakeGeneration:
        if self.refuse is not None:
            raise self.refuse
        self._check(prompt_token_ids, sampling)
        self.submitted.append({"id": request_id, "ids": list(prompt_token_ids), "sampling": sampling, **options})
        outputs = [CompletionOutput(n, logprobs=None if sampling.logprobs is None else []) for n in range(sampling.n)]
        output = RequestOutput(
            request_id, options.get("prompt"), list(prompt_token_ids), outputs, lora_name=options.get("lora_name")
        )
        if sampling.prompt_logprobs is not None:
            output.prompt_logprobs = [
                None,
                *(self._entry(token, sampling.prompt_logprobs) for token in output.prompt_token_ids[1:]),
            ]
        generation = FakeGeneration(self, output, sampling)
        generation._task = asyncio.get_running_loop().create_task(self._run(generation, self.script))
        self.generations.append(generation)
        self.live.add(generation)
        return generation

    def _check(self, ids, sampling) -> None:
        if not ids:
            raise RequestError("the prompt is empty", code="EMPTY_PROMPT", field="prompt", limit="at least 1 token")
        for index, token in enumerate(ids):
            if not 0 <= token < self.tokenizer.vocab_size:
                raise RequestError(
                    "no token of this model",
                    code="TOKEN_OUT_OF_RANGE",
                    field=f"prompt_token_ids[{index}]",
                    value=token,
                    limit=f"0 to {self.tokenizer.vocab_size - 1}",
                )
        answer = sampling.max_tokens or 1
        if len(ids) + answer > CONTEXT:
            raise RequestError(
                f"{len(ids)} prompt tokens and {answer} to generate are more than the context length",
                code="CONTEXT_LENGTH_EXCEEDED",
                field="max_tokens",
                limit=f"{CONTEXT} tokens",
                value=answer,
                fix=f"set max_tokens to at most {CONTEXT - len(ids)}",
            )

    async def _run(self, generation: FakeGeneration, script: Script) -> None:
        sampling, output = generation.sampling, generation.output
        ids = self.tokenizer.encode(script.answer)
        limit = min(len(ids), sampling.max_tokens or len(ids))
        for number in range(limit):
            if script.fail is not None and number == script.fail[0]:
                code = script.fail[1]
                if code.startswith("ENGINE"):
                    generation.error = EngineError("the engine process ended", code=code)
                generation.end("error", f"{code}: something happened")
                return
            await (asyncio.sleep(0) if script.pace is None else script.pace.wait())
            for each in output.outputs:
                each.token_ids.append(ids[number])
                text = self.tokenizer.decode(each.token_ids)
                each.text = text if number == limit - 1 else text.rstrip("\ufffd")
                if each.logprobs is not None:
                    each.logprobs.append(self._entry(ids[number], sampling.logprobs))
            generation._changed.set()
        generation.end(script.finish or ("length" if limit < len(ids) else "stop"))

    def _entry(self, token: int, count: int) -> dict[int, Logprob]:
        others = [each for each in range(2, 2 + count + 1) if each != token]
        entry = {token: Logprob(-0.5, 1, self.tokenizer.token_text(token))}
        for rank, each in enumerate(others[: max(0, count - 1)], 2):
            entry[each] = Logprob(-1.0 * rank, rank, self.tokenizer.token_text(each))
        return entry

    async def render(self, messages, *, tools=None, chat_template=None, chat_template_kwargs=None, **options) -> str:
        self.rendered.append({"messages": messages, "tools": tools, "kwargs": chat_template_kwargs, **options})
        return render_chat(
            chat_template or self.tokenizer.chat_template,
            messages,
            tools=tools,
            add_generation_prompt=options["add_generation_prompt"],
            bos_token="<s>",
            eos_token="</s>",
            **(chat_template_kwargs or {}),
        )

    async def encode(self, text, add_special_tokens=True):
        return self.tokenizer.encode(text, add_special_tokens)

    async def add_lora(self, name, path):
        self.loras[name] = LoRAInfo(name, path, "0" * 64, 8, ("q_proj",), 1024)
        return self.loras[name]

    async def remove_lora(self, name):
        if name not in self.loras:
            raise RequestError("no such adapter", code="UNKNOWN_ADAPTER", field="lora_name", value=name)
        return self.loras.pop(name)

    def list_loras(self):
        return list(self.loras.values())

    def stats(self):
        return SimpleNamespace(
            running=len(self.live),
            waiting=0,
            kv_blocks_used=3,
            kv_blocks=64,
            block_size=16,
            prefix_queries=10,
            prefix_hits=4,
            preemptions=1,
            restarts=0,
            step_seconds=0.01,
        )
