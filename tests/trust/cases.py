"""The trust programme as data: every case, what it is, and where it is tried.

A test of `tests/trust` names the cases it tries in its own text; what is tried elsewhere is listed here.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .hostile.elsewhere import ELSEWHERE as HOSTILE_ELSEWHERE
from .hostile.kinds import GROUPS, KINDS

ROOT = Path(__file__).resolve().parents[2]
Places = Mapping[str, tuple[str, ...]]
"""Case → node ids of pytest, each of a test with all its parameters."""
_ID = re.compile(r"\b(?:LD|LK|EX|[A-Z])\d+\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Programme:
    """Cases that are tried together.

    Attributes:
        title: of its table. cases: id → what is done. files: where its tests are. elsewhere: in other files.
        not_covered: what nobody should conclude from it.
    """

    title: str
    cases: Mapping[str, str]
    files: tuple[str, ...]
    elsewhere: Places = field(default_factory=dict)
    not_covered: str

    @property
    def arguments(self) -> list[str]:
        """For pytest."""
        return [*self.files, *dict.fromkeys(place for places in self.elsewhere.values() for place in places)]

    def named_by(self, node: str) -> set[str]:
        """The cases that a test tries, by its node id."""
        test = node.partition("[")[0]
        others = {case for case, places in self.elsewhere.items() if test in places}
        file, _, name = test.partition("::")
        return others | (named_in(ROOT / file).get(name, set()) & self.cases.keys())


def named_in(file: Path) -> dict[str, set[str]]:
    """Of each test of a file the cases that its text names."""
    return {name: set(_ID.findall(text)) for name, text in functions_in(file)}


def functions_in(file: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each test function of a file, decorators included."""
    source = file.read_text("utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            yield node.name, "\n".join(source.splitlines()[first - 1 : node.end_lineno])


_FAULTS = {
    "F01": "the engine process is killed, or ended by a plugin",
    "F02": "a rank of a divided model is killed",
    "F03": "the process that serves is killed",
    "F04": "the engine process is stopped, and continued",
    "F05": "a step that never ends",
    "F06": "clients that leave in the middle of a stream",
    "F07": "32 requests for a KV cache that holds one",
    "F08": "memory that is not to be had, in a step",
    "F09": "NaN, Inf or nothing but -Inf among one row's logits",
    "F10": "a plugin that raises once, for one request, or always; or returns another shape",
    "F11": "flipped bits in weights",
    "F12": "no home directory, nowhere to write",
    "F13": "no descriptors, no process to be had, a clock that jumps",
    "F15": "SIGTERM under load, twice, and signals at every phase of the start",
    "F16": "a port that is taken, addresses that are not there, a socket that somebody left",
    "F17": "an event loop that is blocked",
}
_EXACTNESS = {
    "EX1": "batches of any size, arrivals in any order",
    "EX2": "prompts in chunks of any size",
    "EX3": "a prefix cache that is cold, warm, partial or evicted",
    "EX4": "preemption at any step",
    "EX5": "tensor, pipeline, expert and data parallelism",
    "EX6": "LoRA adapters mixed in a batch, against PEFT's merged weights",
    "EX7": "random programs of everything at once",
    "EX8": "every architecture against transformers, logits and greedy tokens",
    "EX9": "weights against the reference readers and dequantizers, bit by bit",
    "EX10": "sampling by seed and position, and its distribution",
    "EX11": "streams against whole answers",
}
_CONTRACTS = {
    "bloom_plugin/tests/test_bloom.py": ("TestBloom",),
    "llama_plugin/tests/test_llama.py": ("TestFirstSpelling", "TestLlama", "TestMistral", "TestPhi3"),
    "mixtral_plugin/tests/test_mixtral.py": ("TestMixtral",),
    "qwen_plugin/tests/test_contracts.py": ("TestQWen", "TestQwen2", "TestQwen2Moe", "TestQwen3", "TestQwen3Moe"),
}
_SCHEDULES, _LORA = "tests/exactness/test_exactness.py", "tests/exactness/test_lora.py"
_DEQUANT, _SAMPLER = "core/tests/nn/test_gguf_dequant.py", "core/tests/engine/test_sampler.py"
_SMOLLM2 = "tests/end_to_end/test_smollm2.py"
_EXACTNESS_ELSEWHERE: Places = {
    "EX1": (f"{_SCHEDULES}::test_batched_equals_alone",),
    "EX2": (f"{_SCHEDULES}::test_chunked_equals_whole",),
    "EX3": (f"{_SCHEDULES}::test_cached_equals_uncached",),
    "EX4": (f"{_SCHEDULES}::test_preempted_equals_not",),
    "EX5": ("tests/exactness/test_ranks.py::test_ranks_answer_as_one_process",),
    "EX6": (
        f"{_LORA}::test_a_mixed_batch_equals_peft", f"{_LORA}::test_ranks_answer_as_peft_does",
        f"{_LORA}::test_processes_answer_as_peft_does",
    ),
    "EX8": (
        *(
            f"plugins/{file}::{contract}::{check}"
            for file, contracts in _CONTRACTS.items() for contract in contracts
            for check in ("test_logits", "test_greedy", "test_bf16")
        ),
        f"{_SMOLLM2}::test_64_greedy_tokens_equal_transformers", f"{_SMOLLM2}::test_logits_equal_transformers",
    ),
    "EX9": (
        f"{_DEQUANT}::test_random_bytes", f"{_DEQUANT}::test_special_scales", f"{_DEQUANT}::test_constant_bytes",
        "core/tests/loader/test_safetensors_reader.py::test_header_and_tensors_equal_the_librarys",
        "core/tests/loader/test_gguf_reader.py::test_like_the_reference_reader",
    ),
    "EX10": (
        f"{_SAMPLER}::test_draws_follow_the_distribution",
        f"{_SAMPLER}::test_a_draw_depends_on_seed_and_position_alone",
    ),
    "EX11": (f"{_SMOLLM2}::test_streaming_equals_not_streaming",),
}  # fmt: skip

PROGRAMMES: Mapping[str, Programme] = {
    "faults": Programme(
        title="Faults",
        cases=_FAULTS,
        files=tuple(f"tests/trust/test_faults_of_{name}.py" for name in
                    ("the_process", "the_server", "the_surroundings", "the_model", "resources", "ranks")),
        not_covered="machines that fail, networks between ranks, accelerators; all is tried on one machine, on a CPU.",
    ),
    "exactness": Programme(
        title="Exactness",
        cases=_EXACTNESS,
        files=("tests/trust/test_exactness.py", "tests/trust/test_programs.py"),
        elsewhere=_EXACTNESS_ELSEWHERE,
        not_covered="models larger than SmolLM2-135M, and accelerators, whose kernels round otherwise.",
    ),
    "load": Programme(
        title="Load",
        cases={
            "LD1": "64 clients at once: streams, several answers, grammars, log-probabilities, cancellations",
            "LD2": "conversations with a real model",
            "LD3": "a burst of more requests than the queue holds",
            "LD4": "clients that connect and leave, and slow readers",
            "LD5": "twice as many requests as can be answered",
        },
        files=("tests/trust/test_load.py",),
        not_covered="large models, whose steps and not whose server bound the load; clients on other machines.",
    ),
    "leaks": Programme(
        title="Leaks",
        cases={
            "LK1": "requests of all kinds, one after another",
            "LK2": "grammars, templates, adapters and models that are never the same",
            "LK3": "requests that are given up, or refused",
            "LK4": "engines and servers started and ended",
        },
        files=("tests/trust/test_leaks.py",),
        not_covered="memory of accelerators, and months.",
    ),
    "hostile": Programme(
        title="Hostile inputs",
        cases=KINDS | GROUPS,
        files=("tests/trust/hostile",),
        elsewhere={id_: ("::".join(place),) for id_, place in HOSTILE_ELSEWHERE.items()},
        not_covered="plugins and users who mean harm, timing, TLS ([what is believed](../threat-model.md)).",
    ),
    "frames": Programme(
        title="Messages between processes",
        cases={"F14": "damaged, truncated, reordered and invented messages"},
        files=("tests/trust/test_frames.py",),
        not_covered="messages between ranks on several machines, whose network must be one's own.",
    ),
}  # fmt: skip
CLIENTS = Programme(
    title="Other people's clients",
    cases={
        "documents": "the page of clients, as it is printed",
        "langchain": "LangChain",
        "litellm": "LiteLLM",
        "llm": "the `llm` command",
        "lm_eval": "lm-eval",
        "node": "OpenAI's library for Node, Vercel's AI SDK",
        "openai": "OpenAI's library for Python",
        "openai_responses": "OpenAI's library for Python, `/v1/responses`",
        "schemathesis": "requests that Schemathesis makes of the API's description",
    },
    files=(),
    not_covered="other versions of the clients than those in the record.",
)
"""What scripts/clients tries, in an environment of its own: its files, and whose clients they drive."""
