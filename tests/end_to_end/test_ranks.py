"""One model in several processes: the same answers, and an end with an error when a process is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
import transformers

from bestiary import LLM, SamplingParams
from bestiary.api.config import ParallelConfig
from bestiary.api.errors import BestiaryError, EngineError, UsageError
from bestiary.engine.parallel.seat import take_seat

PROMPTS = [[1, 5, 7, 9, 3], [4, 4, 2, 8] * 6, [9] * 30, [17]]
GREEDY = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, logprobs=2)
DRAWING = SamplingParams(temperature=1.0, seed=7, max_tokens=12, ignore_eos=True, n=2)
LONG = SamplingParams(temperature=0, max_tokens=90, ignore_eos=True)
PLAIN = {"skip_tokenizer_init": True, "dtype": "float32", "device": "cpu", "progress": False, "max_model_len": 128}
SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 211, "max_position_embeddings": 128, "eos_token_id": 2,
}  # fmt: skip


def _save(model, folder: Path) -> Path:
    for param in model.parameters():
        torch.nn.init.normal_(param, std=0.15)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    return _save(model, tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SIZES, num_local_experts=6, num_experts_per_tok=2)
    return _save(transformers.MixtralForCausalLM(config), tmp_path_factory.mktemp("mixtral"))


def answers(llm, params=GREEDY):
    return [each.outputs[0] for each in llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS], params,
                                                     use_tqdm=False)]  # fmt: skip


def workers():
    return [each for each in psutil.Process().children() if "parallel.worker" in " ".join(each.cmdline())]


def require_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
            for token in one.keys() & other.keys():
                assert one[token].logprob == pytest.approx(other[token].logprob, abs=1e-4)


def full(*values):
    return pytest.param(*values, marks=pytest.mark.full)


LAYOUTS = {
    "TP 2": ("llama", {"tensor_parallel_size": 2}),
    "TP 4": ("llama", {"tensor_parallel_size": 4}),
    "PP 4": ("llama", {"pipeline_parallel_size": 4}),
    "TP 2, PP 2": ("llama", {"tensor_parallel_size": 2, "pipeline_parallel_size": 2, "pipeline_layers": [1, 3]}),
    "PP 2, DP 2": ("llama", {"pipeline_parallel_size": 2, "data_parallel_size": 2}),
    "EP 2": ("mixtral", {"tensor_parallel_size": 2, "enable_expert_parallel": True}),
}


@pytest.mark.parametrize(
    "layout", ["TP 2, PP 2", "EP 2", *(full(name) for name in ("TP 2", "TP 4", "PP 4", "PP 2, DP 2"))]
)
def test_several_processes_equal_one(layout, request):
    name, options = LAYOUTS[layout]
    model = str(request.getfixturevalue(name))
    with LLM(model, **PLAIN) as alone:
        expected, drawn = answers(alone), [each.token_ids for each in answers(alone, DRAWING)]
    before = torch.get_num_threads(), dict(os.environ)
    with LLM(model, **PLAIN, max_num_batched_tokens=16, **options) as llm:
        require_equal(answers(llm), expected)
        tokens = expected[0].token_ids
        stopping = SamplingParams(temperature=0, max_tokens=16, stop_token_ids=[tokens[1]])
        assert answers(llm, stopping)[0].token_ids == tokens[: tokens.index(tokens[1]) + 1]
        assert [each.token_ids for each in answers(llm, DRAWING)] == drawn
        assert llm.engine.stats().running == llm.engine.stats().waiting == 0
    assert not workers()
    assert (torch.get_num_threads(), dict(os.environ)) == before


def _for_ever(llm):
    while True:
        requests = llm._submit([{"prompt_token_ids": ids} for ids in PROMPTS], LONG, None)
        try:
            llm._drive(requests, show=False)
        finally:
            assert all(request.finished for request in requests)
            reasons = {output.finish_reason for request in requests for output in request.outputs}
            assert reasons <= ({"length"} if llm.engine.dead is None else {"error", "length"})


def _dies(llm, action):
    """Runs requests, and `action` on a worker's process while they run; returns the error."""
    (victim, *_) = workers()
    timer = threading.Timer(0.3, action, [victim])
    timer.start()
    with pytest.raises(EngineError) as caught:
        _for_ever(llm)
    timer.join()
    assert not llm.engine.has_unfinished_requests
    assert not workers(), "no process is left"
    with pytest.raises(EngineError):
        answers(llm)
    llm.close()
    return caught.value


@pytest.mark.parametrize("options", [full({"tensor_parallel_size": 2}), {"pipeline_parallel_size": 3}])
def test_a_killed_rank_ends_every_request(llama, options):
    llm = LLM(str(llama), **PLAIN, **options, stall_timeout=3600)  # nobody waits for that
    error = _dies(llm, lambda victim: victim.send_signal(signal.SIGKILL))
    assert error.error_code == "RANK_DIED"
    assert "SIGKILL" in error.message and error.field == "rank 1"


def test_a_rank_that_does_not_come_back_is_found(llama):
    llm = LLM(str(llama), **PLAIN, tensor_parallel_size=2, stall_timeout=1.5)
    error = _dies(llm, lambda victim: victim.send_signal(signal.SIGSTOP))
    assert error.error_code == "RANK_STALLED"
    assert "rank 1" in error.message and error.field in ("stall_timeout", "rank 1")  # whoever notices first


@pytest.mark.full
def test_an_idle_rank_that_freezes_is_found(llama):
    llm = LLM(str(llama), **PLAIN, tensor_parallel_size=2)
    workers()[0].send_signal(signal.SIGSTOP)
    time.sleep(12)
    with pytest.raises(EngineError, match="has not stirred"):
        answers(llm)
    llm.close()


SCRIPT = """
import os, sys
from bestiary import LLM, SamplingParams
llm = LLM({model!r}, **{plain!r}, {options})
params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
prompts = [{{"prompt_token_ids": ids}} for ids in {prompts!r}]
sys.stdout.write("answer %r\\n" % [out.outputs[0].token_ids for out in llm.generate(prompts, params, use_tqdm=False)])
sys.stdout.flush()
{more}
llm.close()
"""


def script(folder, model, options, more=""):
    path = folder / f"script{len(list(folder.iterdir()))}.py"
    path.write_text(SCRIPT.format(model=str(model), plain=PLAIN, options=options, prompts=PROMPTS, more=more))
    return str(path)


def test_two_machines_are_two_nodes(llama, tmp_path):
    with LLM(str(llama), **PLAIN) as alone:
        expected = [each.token_ids for each in answers(alone)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = "tensor_parallel_size=2, pipeline_parallel_size=2, nnodes=2, master_port=%d, node_rank=%d"
    nodes = [
        subprocess.Popen([sys.executable, script(tmp_path, llama, options % (port, rank))], stdout=subprocess.PIPE)
        for rank in (0, 1)
    ]
    for node in nodes:
        out, _ = node.communicate(timeout=120)
        assert out.decode().strip() == f"answer {expected}"
        assert node.returncode == 0


def test_torchrun_starts_the_ranks(llama, tmp_path):
    with LLM(str(llama), **PLAIN) as alone:
        expected = [each.token_ids for each in answers(alone)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ran = subprocess.run(
        [*command, script(tmp_path, llama, "tensor_parallel_size=2")], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split("\n").count(f"answer {expected}") == 2


def test_torchrun_must_start_as_many_as_the_model_is_divided_among():
    environ = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}
    with pytest.raises(UsageError, match="2 processes were started, but the model is divided among 4"):
        take_seat(ParallelConfig(tensor_parallel_size=4), environ)
    assert take_seat(ParallelConfig(), environ) is None
    seat = take_seat(ParallelConfig(tensor_parallel_size=2), environ)
    assert (seat.rank, seat.starts, seat.hosts, seat.address) == (1, (), False, "127.0.0.1")
    with pytest.raises(UsageError, match="no launcher"):
        take_seat(ParallelConfig(tensor_parallel_size=2, distributed_executor_backend="external_launcher"), {})


def test_nothing_listens_beyond_loopback_and_nothing_outlives_its_parent(llama, tmp_path):
    more = "print('pid', os.getpid(), flush=True); sys.stdin.read()"
    command = [sys.executable, script(tmp_path, llama, "tensor_parallel_size=2, pipeline_parallel_size=2", more)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout.readline().startswith(b"answer")
            assert parent.stdout.readline().startswith(b"pid")
            team = [psutil.Process(parent.pid), *psutil.Process(parent.pid).children(recursive=True)]
            assert len(team) == 4
            listening = [
                each.laddr for process in team for each in process.net_connections("inet") if each.status == "LISTEN"
            ]
            assert listening, "gloo listens somewhere"
            assert {address.ip for address in listening} == {"127.0.0.1"}
        finally:
            parent.kill()
    gone, alive = psutil.wait_procs(team, timeout=60)
    assert not alive, gone


def test_sizes_that_do_not_divide_are_refused_before_anything_starts(llama):
    for options, field, rule in (
        ({"tensor_parallel_size": 3}, "num_attention_heads", "a multiple of 3"),
        ({"pipeline_parallel_size": 5}, "pipeline_parallel_size", "at most 4"),
        ({"pipeline_parallel_size": 2, "pipeline_layers": [1, 2]}, "pipeline_layers", "whose sum is 4"),
        ({"tensor_parallel_size": 2, "nnodes": 3}, "nnodes", "a divisor of 2"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size", "at least 1"),
    ):
        with pytest.raises(UsageError) as caught:
            LLM(str(llama), **PLAIN, **options)
        assert caught.value.field == field and rule in str(caught.value.limit)
        assert not workers()


def test_a_rank_that_cannot_load_says_why(llama, tmp_path):
    folder = tmp_path / "broken"
    folder.mkdir()
    for file in llama.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = {name: value for name, value in safetensors(folder).items() if "layers.3.mlp.down" not in name}
    from safetensors.torch import save_file

    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(BestiaryError) as caught:
        LLM(str(folder), **PLAIN, pipeline_parallel_size=2)
    assert caught.value.error_code == "WEIGHTS_MISMATCH"
    assert any("layers.3.mlp.down_proj" in line for line in caught.value.details)
    assert not workers()


def safetensors(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")
