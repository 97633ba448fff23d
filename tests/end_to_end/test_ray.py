"""Ranks placed by a real Ray, in a cluster of two nodes: processes of this machine with addresses of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from types import SimpleNamespace

import psutil
import pytest
import torch
import transformers

from bestiary import LLM, SamplingParams
from bestiary.api.config import ParallelConfig
from bestiary.api.errors import EngineError, UsageError
from bestiary.engine.parallel import ray_cluster, ray_workers, workers
from bestiary.engine.parallel.ray_actor import Whereabouts
from bestiary.engine.parallel.seat import Seat, take_seat

PROMPTS = [{"prompt_token_ids": ids} for ids in ([1, 5, 7, 9, 3], [4, 4, 2, 8] * 6, [17])]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
RAY = {"distributed_executor_backend": "ray"}
QUIET = pytest.mark.filterwarnings("ignore::ResourceWarning")  # Ray leaves its own files and processes to the end
OTHER_NODE = "127.0.0.2"
PROGRAM = """
import os, subprocess, sys
from bestiary import LLM, SamplingParams
options = {"tensor_parallel_size": 2, "distributed_executor_backend": "ray", "skip_tokenizer_init": True}
with LLM(sys.argv[1], device="cpu", progress=False, **options) as llm:
    llm.generate([[1, 2, 3]], SamplingParams(max_tokens=2), use_tqdm=False)
    import ray
    print(ray.is_initialized(), len(os.environ["RAY_AUTH_TOKEN"]))
    other = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    code = f"import ray; ray.init({ray.get_runtime_context().gcs_address!r})"
    asked = subprocess.run([sys.executable, "-c", code], env=other, capture_output=True, text=True)
    print("refused" if asked.returncode and "InvalidAuthToken" in asked.stderr else asked)
print(ray.is_initialized())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=211, max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    made = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(made)
    return made


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """A rank that starts while other tests keep the machine busy is not taken for frozen."""
    monkeypatch.setattr(workers, "FROZEN_SECONDS", 120.0)


def load(folder, **options):
    return LLM(str(folder), skip_tokenizer_init=True, dtype="float32", device="cpu", progress=False, **options)


def answers(llm, params=GREEDY):
    return [each.outputs[0].token_ids for each in llm.generate(PROMPTS, params, use_tqdm=False)]


def answer_for_ever(llm):
    while True:
        answers(llm, LONG)


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of two nodes with a core each, which engines find at RAY_ADDRESS."""
    if find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("RAY_AUTH_MODE", "token")
    patch.setenv("RAY_AUTH_TOKEN", "a-secret-of-these-tests-and-no-other")
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1, node_ip_address=OTHER_NODE)
    patch.setenv("RAY_ADDRESS", made.address)
    yield ray
    ray.shutdown()
    made.shutdown()
    patch.undo()


def groups(ray):
    return [each["state"] for each in ray.util.placement_group_table().values()]


def require_ended(process):
    """A process that was killed, and is gone but for what its parent has yet to read of it."""
    deadline = time.monotonic() + 10
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@QUIET
def test_ranks_on_two_nodes_answer_as_one_process_and_end_with_the_engine(folder, cluster):
    with load(folder) as one:
        expected = answers(one)
    with load(folder, tensor_parallel_size=2, **RAY) as llm:
        assert answers(llm) == expected
        (bundles,) = [each["bundles_to_node_id"] for each in cluster.util.placement_group_table().values()]
        assert len(set(bundles.values())) == 2
        assert llm.engine.team.seat.address not in ("127.0.0.1", OTHER_NODE)
        (pid,) = llm.engine.team.workers.pids.values()
        process = psutil.Process(pid)
        assert groups(cluster) == ["CREATED"]
    assert groups(cluster) == ["REMOVED"]
    require_ended(process)
    assert cluster.is_initialized()  # this process was in the cluster before


@QUIET
def test_a_killed_actor_ends_every_request_with_an_error(folder, cluster):
    llm = load(folder, pipeline_parallel_size=2, **RAY)
    assert llm.engine.failure is None
    ((rank, pid),) = llm.engine.team.workers.pids.items()
    process = psutil.Process(pid)
    threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(EngineError) as caught:
        answer_for_ever(llm)
    assert caught.value.error_code == "RANK_DIED"
    assert caught.value.message.startswith(f"rank {rank} (process {pid} on {OTHER_NODE}) was lost")
    assert llm.engine.failure.error_code == "RANK_DIED"
    assert not llm.engine.has_unfinished_requests
    assert "CREATED" not in groups(cluster)
    require_ended(process)
    llm.close()


@QUIET
def test_a_cluster_without_room_is_an_error_after_a_while(folder, cluster, monkeypatch):
    monkeypatch.setattr(ray_cluster, "_SOON_SECONDS", 0.1)
    monkeypatch.setattr(ray_cluster, "_PATIENCE_SECONDS", 0.1)
    with pytest.raises(EngineError) as caught:
        load(folder, tensor_parallel_size=4, **RAY)
    assert caught.value.error_code == "NO_ROOM"
    assert caught.value.limit.startswith("1 CPU, 1 CPU, 1 CPU, 1 CPU")
    assert not {"CREATED", "PENDING"} & set(groups(cluster))


@pytest.mark.full
def test_without_a_cluster_one_is_started_with_a_secret_and_ended(folder):
    environ = {name: text for name, text in os.environ.items() if not name.startswith("RAY_")}
    environ |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["True 64", "refused", "False"]


# --- without Ray ----------------------------------------------------------------------------------------------------


def test_without_the_package_the_error_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(UsageError) as caught:
        load(folder, tensor_parallel_size=2, **RAY)
    assert caught.value.fix == "pip install 'bestiary[ray]'"


def test_a_stage_on_gpus_is_one_bundle_and_a_rank_on_cpus():
    parallel = ParallelConfig(tensor_parallel_size=2, pipeline_parallel_size=2, data_parallel_size=2)
    assert ray_cluster.bundles(parallel, "cuda") == [{"CPU": 2, "GPU": 2}] * 4
    assert ray_cluster.bundles(parallel, "cpu") == [{"CPU": 1}] * 8


def test_ranks_of_one_machine_meet_at_its_loopback_and_of_several_at_their_addresses():
    def at(node, address):
        return Whereabouts(1, node, address, (), "1")

    seat = Seat(rank=0, local_size=1, starts=(1, 2), hosts=True)
    first, others = ray_workers.seats(seat, at("a", "10.0.0.1"), {1: at("a", "10.0.0.1"), 2: at("a", "10.0.0.1")})
    first.listener.close()
    assert {first.host, first.address, *(each["address"] for each in others.values())} == {"127.0.0.1"}
    assert [each["local_size"] for each in others.values()] == [3, 3]
    assert {each["port"] for each in others.values()} == {first.port}

    first, others = ray_workers.seats(seat, at("a", "127.0.0.3"), {1: at("a", "127.0.0.3"), 2: at("b", "127.0.0.4")})
    first.listener.close()
    assert (first.host, first.address, first.local_size) == ("127.0.0.3", "127.0.0.3", 2)
    assert {rank: (each["host"], each["address"], each["local_size"]) for rank, each in others.items()} == {
        1: ("127.0.0.3", "127.0.0.3", 2), 2: ("127.0.0.3", "127.0.0.4", 1),
    }  # fmt: skip


@pytest.mark.parametrize(("visible", "fits"), [(None, True), ("0,1", True), ("1,0", False)])
def test_rank_0_computes_on_the_gpu_that_was_reserved_for_it(visible, fits, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    reserved = Whereabouts(1, "a", "10.0.0.1", ("0",), "1")
    if fits:
        ray_workers._require_first_gpu(reserved)
    else:
        with pytest.raises(UsageError) as caught:
            ray_workers._require_first_gpu(reserved)
        assert caught.value.fix == "CUDA_VISIBLE_DEVICES=0 in front of the command"


def test_what_does_not_go_together_with_ray_is_refused():
    for given, field in (
        ({"tensor_parallel_size": 2, "nnodes": 2, **RAY}, "nnodes"),
        ({"distributed_executor_backend": "rey"}, "distributed_executor_backend"),
    ):
        with pytest.raises(UsageError) as caught:
            take_seat(ParallelConfig(**given))
        assert caught.value.field == field
    assert take_seat(ParallelConfig(**RAY)) is None  # one rank is this process, whoever would start others


@pytest.mark.parametrize(
    "given", [{}, {"RAY_ADDRESS": "local"}, {"RAY_ADDRESS": "10.0.0.1:6379"}, {"RAY_AUTH_MODE": "disabled"}]
)
def test_a_new_cluster_gets_a_secret_unless_the_user_has_decided(given, monkeypatch):
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(ray_cluster.os, "environ", dict(given))
    ray_cluster._guard_new_cluster()
    if given.get("RAY_ADDRESS", "local") != "local" or "RAY_AUTH_MODE" in given:
        assert ray_cluster.os.environ == given
    else:
        assert ray_cluster.os.environ["RAY_AUTH_MODE"] == "token"
        assert len(ray_cluster.os.environ["RAY_AUTH_TOKEN"]) == 64


def test_a_new_cluster_without_a_secret_is_refused(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    with pytest.raises(UsageError) as caught:
        ray_cluster.join_cluster(2)
    assert caught.value.field == "RAY_AUTH_MODE"
