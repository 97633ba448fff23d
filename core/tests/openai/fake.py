"""A model for the HTTP layer's tests: the interface of `AsyncLLM`, answers from a script, no engine."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from functools import cache

from bestiary.api.errors import EngineError, RequestError
from bestiary.api.lora import LoRAInfo
from bestiary.api.outputs import CompletionOutput, Logprob, RequestOutput
from bestiary.api.structured import StructuredOutputsParams
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.process.messages import EngineStats, ModelInfo
from bestiary.engine.structured.json_schema import wrong
from bestiary.serve.pooled import new_pooled
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


MODEL = ModelInfo(
    name="tiny", architecture="TinyForCausalLM", model_class="tiny:TinyForCausalLM", distribution="bestiary-tiny",
    version="1.0", dtype="float32", quantization=None, device="cpu", parameters=1000, weight_bytes=4000,
    max_model_len=CONTEXT, vocab_size=260, eos_token_ids=(1,), cache_tokens=1024, max_prompt=None, max_num_seqs=8,
    num_kv_blocks=64, block_size=16, attention_backend="reference", ops={"rms_norm": "torch"},
    capabilities=("SupportsLoRA",), lora=True,
)  # fmt: skip


@dataclass
class Script:
    """How the next requests go.

    pace: acquired before each token. fail: (tokens, code) after which a request dies.
    """

    answer: str = ANSWER
    fail: tuple[int, str] | None = None
    pace: asyncio.Semaphore | None = None
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
        self.info = MODEL
        self.state, self.error, self.restarts, self.phases = "ready", None, 0, {"load the model": 0.5}
        self.script = Script()
        self.refuse: Exception | None = None
        self.submitted: list[dict] = []
        self.rendered: list[dict] = []
        self.forms: list[StructuredOutputsParams] = []
        self.generations: list[FakeGeneration] = []
        self.live: set[FakeGeneration] = set()
        self.loras: dict[str, LoRAInfo] = {}

    def check_open(self, answers=1) -> None:
        if self.refuse is not None:
            raise self.refuse

    def submit(self, request_id, prompt_token_ids, sampling, **options) -> FakeGeneration:
        self.check_open()
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
        self.info.checks.check(ids, sampling)

    def submit_pooling(self, request_id, prompt_token_ids, params, **options):
        self.info.checks.check(prompt_token_ids, params)
        self.submitted.append({"id": request_id, "ids": list(prompt_token_ids), "params": params, **options})
        output = new_pooled(request_id, options.get("prompt"), prompt_token_ids, params, None)
        generation = FakeGeneration(self, output, params)
        output.outputs.data, output.outputs.finish_reason, output.finished = [0.6, 0.8], "stop", True
        generation._changed.set()
        return generation

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
            await (asyncio.sleep(0) if script.pace is None else script.pace.acquire())
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

    async def render(self, messages, *, chat_template=None, **variables) -> str:
        self.rendered.append({"messages": messages, **variables})
        return render_chat(
            chat_template or self.tokenizer.chat_template, messages, bos_token="<s>", eos_token="</s>", **variables
        )

    async def check_structured_outputs(self, sampling):
        wanted = sampling.structured_outputs
        if wanted is None:
            return
        self.forms.append(wanted)
        if wanted.form == "regex" and "(?=" in wanted.regex:
            raise RequestError("no look-ahead", code="BAD_REGEX", field="structured_outputs.regex")
        if wanted.form == "grammar" and "(?=" in wanted.grammar:
            raise RequestError("no look-ahead", code="BAD_GRAMMAR", field="structured_outputs.grammar")
        if wanted.form == "json" and "(?=" in wanted.json:
            schemas = json.loads(wanted.json)["properties"]
            number = next(name for name, each in schemas.items() if "(?=" in each["pattern"])
            raise wrong(f"/properties/{number}/pattern", "no look-ahead")
        if wanted.form == "json" and "$ref" in wanted.json:
            raise RequestError("it leads nowhere, at /properties/a", code="BAD_SCHEMA", field="structured_outputs.json")

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
        return EngineStats(
            running=len(self.live),
            blocks=64,
            used_blocks=3,
            prefix_queries=10,
            prefix_hits=4,
            preemptions=1,
            steps=5,
            step_seconds=0.5,
        )
