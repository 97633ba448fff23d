"""The thread pool: all parts of every step, in order where they wait, asleep or awake; its end, and a fork's copy."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from kernel_cases import blocks, normal

from bestiary.api.errors import EngineError
from bestiary.api.ggml_types import GgmlType
from bestiary_cpu import matrix
from bestiary_cpu._abi import PackArgs
from bestiary_cpu.pool import Call, Pool
from bestiary_cpu.threads import physical_cores


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_steps_that_wait_see_what_was_done_before(threads: int) -> None:
    """x → A x → A A x …: every product needs all parts of the one before it."""
    stored = blocks(GgmlType.F32, 64, 64)
    weight, x = stored.view(np.float32) / 8, normal(1, 64)
    with Pool(threads) as pool:
        packed = matrix.pack(pool, GgmlType.F32, weight.view(np.uint8), 64)
        rows = [matrix.Prepared(False, 1, 64, x.view(np.uint8).reshape(-1))]
        calls = []
        for _ in range(20):
            out = np.empty((1, 64), np.float32)
            calls.append(Call("bst_matmul", matrix.matmul_args(packed, rows[-1], out)))
            rows.append(matrix.Prepared(False, 1, 64, out.view(np.uint8).reshape(-1)))
        for pause in (0, 0, 0.05):  # awake, and after the threads have gone to sleep
            time.sleep(pause)
            pool.run(calls)
    want = x
    for _ in range(20):
        want = want @ weight.T
    np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_pools_come_and_go() -> None:
    for _ in range(50):
        with Pool(3) as pool:
            matrix.pack(pool, GgmlType.F32, blocks(GgmlType.F32, 3, 32), 32)
    with pytest.raises(EngineError, match="closed"):
        pool.run([])


def test_a_call_takes_its_own_arguments() -> None:
    with pytest.raises(EngineError, match="bst_matmul takes MatmulArgs, not PackArgs"):
        Call("bst_matmul", PackArgs())


def test_the_default_is_the_cores_this_process_may_use() -> None:
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))
    one = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    code = one + "from bestiary_cpu.threads import physical_cores; print(physical_cores())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "1"


def test_a_second_thread_is_refused_or_takes_its_turn_and_no_result_is_lost() -> None:
    stored, x = blocks(GgmlType.F32, 512, 512), normal(8, 512)
    with Pool(2) as pool:
        packed = matrix.pack(pool, GgmlType.F32, stored, 512)
        want = matrix.matmul(pool, packed, x)

        def use() -> tuple[list[bool], list[str]]:
            right, refused = [], []
            for _ in range(50):
                try:
                    right.append(np.array_equal(matrix.matmul(pool, packed, x), want))
                except EngineError as refusal:
                    refused.append(str(refusal))
            return right, refused

        with ThreadPoolExecutor(3) as others:
            found = [each.result(60) for each in [others.submit(use) for _ in range(3)]]
    right, refused = ([each for part in parts for each in part] for parts in zip(*found, strict=True))
    assert len(right) > 0 and all(right)
    assert all("another thread" in text for text in refused)


def in_child(pool: Pool, answers: multiprocessing.queues.Queue[str]) -> None:
    try:
        matrix.pack(pool, GgmlType.F32, blocks(GgmlType.F32, 3, 32), 32)
        answers.put("ran")
    except EngineError as refusal:
        answers.put(str(refusal))
    pool.close()
    with Pool(2) as own:
        matrix.pack(own, GgmlType.F32, blocks(GgmlType.F32, 3, 32), 32)
    answers.put("own pool ran")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_after_a_fork_the_copy_refuses_and_a_new_pool_runs() -> None:
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    with Pool(2) as pool:
        child = fork.Process(target=in_child, args=(pool, answers))
        child.start()
        assert "belongs to the parent process" in answers.get(timeout=60)
        assert answers.get(timeout=60) == "own pool ran"
        child.join(60)
        assert child.exitcode == 0
        matrix.pack(pool, GgmlType.F32, blocks(GgmlType.F32, 3, 32), 32)
