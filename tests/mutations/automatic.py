"""Every mistake that `mutator` can make in the model files, against their contracts: what do those not notice?

By hand, since it takes an hour: ``python -m tests.mutations.automatic [module …]`` says what noticed each mutant, and
``pytest -m full tests/mutations`` fails for one that nothing notices and `ACCEPTED` does not explain.
"""

from __future__ import annotations

import inspect
import re
import signal
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import pytest

from .mutator import Mutant, mutants
from .run import calls, contract, label, replaced

FILES = {
    "llama_plugin.llama": ("TestLlama", "TestMistral", "TestPhi3"),
    "mixtral_plugin.mixtral": ("TestMixtral",),
    "bloom_plugin.bloom": ("TestBloom",),
    "qwen_plugin.qwen": ("TestQWen",),
    "qwen_plugin.qwen2": ("TestQwen2",),
    "qwen_plugin.qwen2_moe": ("TestQwen2Moe",),
    "qwen_plugin.qwen3": ("TestQwen3",),
    "qwen_plugin.qwen3_moe": ("TestQwen3Moe",),
}
"""Model file → the contracts of its architectures."""
LEFT_OUT = {"found", "clean_import", "readme", "shows_mistakes"}
"""Checks that do not look at the model file."""
QUICK = ("logits", "members", "pipeline", "embeddings", "greedy")
"""Checks that notice most in the shortest time."""
SECONDS = 60
"""How long one check may take before the mutant counts as noticed: nobody overlooks a test that never ends."""

_SUM = "a norm adds what it is given and the residual, and a sum has no order"
_WINDOW = "a layer that is given no window takes the configuration's; the file says which for the reader"
_SAID = "the default, said for the reader"
_HEADS = "rotation and attention take heads as a dimension of their own, too"
ACCEPTED = {
    r"forward: -1 → 1$|query_scale: -1 → 1$": "of two dimensions, the last is the second",
    r"\.forward: self\.\w*(norm|ln_\w)\(hidden_states, residual\) → .*\(residual, hidden_states\)$": _SUM,
    r"\.forward: self\.(mlp|block_sparse_moe)\(hidden_states\), residual → \(residual, ": _SUM,
    r"Model\.forward: hidden_states, residual → \(residual, hidden_states\)$": _SUM,
    r"Model\.forward: layer\(positions, hidden_states, residual.* → layer\(positions, residual, hidden_states": _SUM,
    r"Model\.forward: intermediate_tensors\[.* → \(intermediate_tensors\['residual'\], ": _SUM,
    r"Model\.forward: \{.*\} → \{'hidden_states': residual, 'residual': hidden_states\}$": _SUM,
    r"make_empty_\w+: \{.*\} → \{'hidden_states': zeros\.clone\(\), 'residual': zeros\}$": "either may be the clone",
    r'__init__: "" → \'_\'$': "`prefix` is vLLM's, and the placement walk gives each layer its name",
    r"(Llama|Mixtral|Qwen3Moe)Attention\.__init__: Attention\(.* → Attention\(.*num_kv_heads\)$": _WINDOW,
    r"(Llama|Mixtral|Qwen3Moe)Attention\.__init__: .*sliding_window.* → (None|'sliding_window_')$": _WINDOW,
    r": QKVParallelLinear\(.*, bias=True ?\) → QKVParallelLinear\([^=]*\)$": _SAID,
    r": FusedMoE\(.*renormalize=True, .* → FusedMoE\([^=]*, activation=.*, ckpt_names=.*\)$": _SAID,
    r"decoder_sparse_step == 0 → \(.* <= 0\)$": "a remainder is never below 0",
    r"Qwen3(Moe)?Attention\.forward: .*→ self\.[qk]_norm\([qk]\.unflatten\(-1, \(-1, self\.head_dim\)\)\)$": _HEADS,
    r"Qwen3(Moe)?Attention\.forward: -2 → 2$": _HEADS,
    r"QWenAttention\.__init__: get_rope\(.* → get_rope\(.*rotary_pct\)$": (
        "without its dtype the rotation rounds as the activations do: in bfloat16 alone, and within its bound"
    ),
    r"QWenModel\.forward: hidden_states → residual$": "its dtype is asked for, and both have the same",
    r"BloomModel\.forward: islice\(.*\) → self\.h$": "another stage's layer hands on its argument: a block has one",
    r"BloomForCausalLM: \(.word_emb.*\) → \('\w+\.?', '\w+\.?', '\w+\.?'\)$": "no prefix is another's beginning",
}
"""Pattern of ``where: old → new`` → why such a mutant is no mistake, for any configuration."""


def subjects(module: str) -> list[Any]:
    package = module.partition(".")[0]
    return [contract(f"{package}.contract:{name}") for name in FILES[module]]


def defaults(module: str) -> Mapping[str, Any]:
    """Fields of the configuration → the values that its class gives them."""
    config = getattr(subjects(module)[0].bench.reference(), "config", None)
    try:
        return vars(type(config)())
    except TypeError:  # a plain bag of fields
        return {}


def outcomes(module: str) -> Iterator[tuple[Mutant, str | None]]:
    """Every mutant of a file, and what noticed it."""
    tested = subjects(module)
    try:
        for mutant in mutants(inspect.getsource(import_module(module)), defaults(module)):
            yield mutant, noticed_by(module, mutant, tested)
    finally:
        for subject in tested:
            type(subject).teardown_class()


def noticed_by(module: str, mutant: Mutant, tested: list[Any]) -> str | None:
    """The first check that fails; references and checkpoints are kept from mutant to mutant."""
    try:
        with warnings.catch_warnings(action="ignore"), replaced(module, mutant.source):
            for subject, name, arguments in in_order(tested):
                if not passes(subject, name, arguments):
                    return label(name, arguments)
    except Exception as error:
        return f"import: {type(error).__name__}"
    finally:
        for subject in tested:
            subject.bench.drop_all()
    return None


def in_order(tested: list[Any]) -> list[tuple[Any, str, dict[str, str]]]:
    """Every check of all contracts, the base's logits first, then `QUICK`, then the rest."""
    found = [(subject, *call) for subject in tested for call in calls(subject, LEFT_OUT)]

    def rank(call: tuple[Any, str, dict[str, str]]) -> tuple[bool, int]:
        _, name, arguments = call
        return name != "logits" or arguments != {"variant": "base"}, (*QUICK, name).index(name)

    return sorted(found, key=rank)


def passes(subject: Any, name: str, arguments: dict[str, str]) -> bool:
    try:
        with limit(SECONDS):
            getattr(subject, f"test_{name}")(**arguments)
    except pytest.skip.Exception:
        return True
    except (Exception, TooLong):
        return False
    return True


class TooLong(BaseException):
    """A check ran for more than `SECONDS`."""


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    def stop(_number: int, _frame: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def reason(mutant: Mutant) -> str | None:
    """Why it is no mistake; None where it is one."""
    text = f"{mutant.where}: {mutant.old} → {mutant.new}"
    return next((why for pattern, why in ACCEPTED.items() if re.search(pattern, text)), None)


if __name__ == "__main__":
    for each in sys.argv[1:] or FILES:
        for number, (made, check) in enumerate(outcomes(each), 1):
            print(number, check or ("accepted" if reason(made) else "NOTHING"), made, sep="\t", flush=True)
