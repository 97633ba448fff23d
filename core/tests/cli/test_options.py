"""Shared options: every field is one, their defaults are the classes' own, and values arrive as they were meant."""

from __future__ import annotations

import dataclasses
import os
import shlex
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.api.sampling import SamplingParams
from bestiary.engine.arguments import EngineArgs
from bestiary.serve.cli import options
from bestiary.serve.cli.kinds import MEMORY
from bestiary.serve.cli.main import COMMANDS, cli

NOT_ENGINE_OPTIONS = {"enable_lora", "model", "skip_tokenizer_init"}
NOT_SAMPLING_OPTIONS = {
    "seed", "stop_token_ids", "include_stop_str_in_output", "prompt_logprobs", "logit_bias", "allowed_token_ids",
    "bad_token_ids", "detokenize", "structured_outputs", "shown_token_ids",
}  # fmt: skip

EVERYTHING = """
--dtype float32 --device cpu --max-model-len 64 --max-num-seqs 3 --seed 5 --deterministic --no-enable-prefix-caching
--kv-cache-memory-bytes 512M --lora sql=a/b --lora x=c --max-loras 2
--op linear=reference --op gelu=reference --plugin LlamaForCausalLM=bestiary-llama
--hf-overrides '{"rope_theta": 5}' --allow-nonfinite --no-progress --temperature 0.5 --top-k 4 --n 2 --ignore-eos
--logprobs 3 --stop 'a b' --stop c
"""


def parsed(*arguments: str) -> tuple[EngineArgs, SamplingParams]:
    found: list[Any] = []

    @click.command()
    @options.sampling_options()
    @options.engine_options
    def command(**given: Any) -> None:
        found.extend([options.engine_args("m", given), options.sampling_params(given)])

    command.main(args=list(arguments), standalone_mode=False)
    return found[0], found[1]


def test_every_field_is_an_option_or_left_out_by_name() -> None:
    assert {field.name for field in dataclasses.fields(EngineArgs)} == {*options.ENGINE_HELP, *NOT_ENGINE_OPTIONS}
    assert {field.name for field in dataclasses.fields(SamplingParams)} == {
        *options.SAMPLING_HELP,
        *NOT_SAMPLING_OPTIONS,
    }


def test_no_option_means_the_default() -> None:
    assert parsed() == (EngineArgs(model="m"), SamplingParams())


def test_every_option_arrives() -> None:
    engine, sampling = parsed(*shlex.split(EVERYTHING))
    assert engine == EngineArgs(
        model="m", dtype="float32", device="cpu", max_model_len=64, max_num_seqs=3, seed=5, deterministic=True,
        enable_prefix_caching=False, kv_cache_memory_bytes=512 * 2**20,
        ops={"linear": "reference", "gelu": "reference"}, plugin={"LlamaForCausalLM": "bestiary-llama"},
        hf_overrides={"rope_theta": 5}, allow_nonfinite=True, lora_modules={"sql": "a/b", "x": "c"}, max_loras=2,
        progress=False,
    )  # fmt: skip
    assert sampling == SamplingParams(
        temperature=0.5, top_k=4, n=2, ignore_eos=True, logprobs=3, stop=["a b", "c"], seed=5
    )


@settings(deadline=None, max_examples=50)
@given(count=st.integers(0, 10**6), unit=st.sampled_from("KMGT"), suffix=st.sampled_from(["", "B", "iB", "ib"]))
def test_sizes(count: int, unit: str, suffix: str) -> None:
    assert MEMORY.convert(f"{count}{unit}{suffix}", None, None) == count * 1024 ** ("KMGT".index(unit) + 1)
    assert MEMORY.convert(str(count), None, None) == count
    assert MEMORY.convert(f"{count}.5{unit.lower()}", None, None) == int(
        (count + 0.5) * 1024 ** ("KMGT".index(unit) + 1)
    )


@pytest.mark.parametrize("text", ["", "-1", "1X", "G", "1e9", "nan", "1 2", "9" * 40])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        MEMORY.convert(text, None, None)


@pytest.mark.parametrize("name", [name for name, (where, _) in COMMANDS.items() if find_spec(where.partition(":")[0])])
def test_every_command_can_be_had_and_explains_itself(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.help


def test_help_shows_defaults() -> None:
    command = cli.get_command(click.Context(cli), "generate")
    assert command is not None
    text = " ".join(command.get_help(click.Context(command)).split())
    for shown in ("[default: 256]", "[default: 0.0]", "[default: auto]", "[default: (as trained)]", "[default: 16]"):
        assert shown in text


@pytest.mark.parametrize(("typed", "names"), [("smo", ["smollm2"]), ("./sm", [])])
def test_a_model_completes_to_short_names_and_files(typed: str, names: list[str]) -> None:
    """Files come first: for bash they empty the list, and stand in only where nothing comes after them."""
    command = cli.get_command(click.Context(cli), "generate")
    assert command is not None
    context = click.Context(command)
    items = command.params[0].shell_complete(context, typed)
    assert [(item.type, item.value) for item in items] == [("file", typed), *(("plain", name) for name in names)]


def completions(shell: str, words: list[str], folder: Path) -> list[str]:
    """What a shell's script of ours asks `bestiary` for, and gets: the words that may follow."""
    environment = os.environ | {
        "_BESTIARY_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(words) if shell == "bash" else "\n".join(words),
        "COMP_CWORD": str(len(words) - 1) if shell != "fish" else words[-1],
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "bestiary"]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bestiary", "expl"], "explain"),
        (["bestiary", "explain", "context_l"], "CONTEXT_LENGTH_EXCEEDED"),
        (["bestiary", "config", "bench", "ser"], "serve"),
        (["bestiary", "bench", "ser"], "serve"),
        (["bestiary", "bench", "serve", "http://h", "--endpoint", "com"], "completions"),
        (["bestiary", "chat", "--no-his"], "--no-history"),
        (["bestiary", "chat", "--conf"], "--config"),
        (["bestiary", "generate", "smollm2", "--dry"], "--dry-run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_shells_complete_what_is_new(shell: str, words: list[str], expected: str, tmp_path: Path) -> None:
    """A broken file of settings is nothing to a completion."""
    (tmp_path / "bestiary.toml").write_text("nonsense")
    assert any(expected in line for line in completions(shell, words, tmp_path))


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_a_short_name(tmp_path: Path) -> None:
    command = tmp_path / "bestiary"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m bestiary "$@"\n')
    command.chmod(0o755)
    program = """
    complete() { :; }; compopt() { :; }
    eval "$(bestiary completion bash)"
    COMP_WORDS=(bestiary generate smo) COMP_CWORD=2
    _bestiary_completion bestiary
    echo "${COMPREPLY[*]}"
    """
    environment = os.environ | {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(["bash", "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("smollm2\n", "")


def test_a_gpu_has_larger_steps() -> None:
    assert EngineArgs(model="m").step_limits("cpu") == (64, 2048)
    assert EngineArgs(model="m").step_limits("cuda") == (256, 8192)
    assert EngineArgs(model="m", max_num_seqs=3, max_num_batched_tokens=9).step_limits("cuda") == (3, 9)
