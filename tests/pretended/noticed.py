"""What a pretended GPU does not forgive. Run by test_pretended.py in a process that has one."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from queue_of_work import WORK


def on_device(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, device="cuda")


def test_tensors_are_on_the_device_and_come_back() -> None:
    x = on_device(1.0, 2.0)
    assert (x.device.type, x.is_cuda, (x * 2)[1].item(), x.cpu().device.type) == ("cuda", True, 4.0, "cpu")
    view = x.view(2, 1)
    view.add_(1)
    assert x.tolist() == [2.0, 3.0]
    assert torch.nn.Parameter(x, requires_grad=False).is_cuda
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()


def test_an_op_is_on_one_device() -> None:
    x = on_device(1.0, 2.0)
    assert (x + torch.tensor(1.0)).tolist() == [2.0, 3.0]
    for other in (torch.ones(2), torch.ones(1)):
        with pytest.raises(RuntimeError, match="same device: aten::add"):
            x + other
    with pytest.raises(RuntimeError, match="same device: aten::equal"):
        torch.equal(x, torch.ones(2))


def test_memory_that_nobody_wrote_is_anything() -> None:
    assert torch.empty(3, device="cuda").isnan().all()
    assert torch.empty(3, 2, device="cuda", dtype=torch.int32).tolist() == [[-1, -1]] * 3


def test_pinned_memory_is_left_alone_until_it_was_copied() -> None:
    source = torch.zeros(4).pin_memory()
    target, done = source.to("cuda", non_blocking=True), torch.cuda.Event()
    done.record()
    done.synchronize()
    source.fill_(1)  # the copy was made
    target.copy_(source, non_blocking=True)
    source.fill_(2)
    with pytest.raises(RuntimeError, match="may still read it"):
        torch.cuda.synchronize()
    WORK.leaving.clear()


def test_pinned_memory_has_nothing_until_somebody_waited() -> None:
    x, target = on_device(1.0, 2.0), torch.empty(2, pin_memory=True)
    early, late = torch.cuda.Event(), torch.cuda.Event()
    early.record()
    target.copy_(x, non_blocking=True)
    late.record()
    early.synchronize()
    assert target.isnan().all()
    late.synchronize()
    assert target.tolist() == [1.0, 2.0]
    there = x.to("cpu", non_blocking=True)
    assert there.isnan().all()
    torch.cuda.synchronize()
    assert there.tolist() == [1.0, 2.0]


def test_who_waits_is_told() -> None:
    x, index = on_device(1.0, 0.0), on_device(1.0, 0.0).bool()
    steps = (
        lambda: float(x[0]), lambda: x[index], lambda: x.nonzero(), lambda: x.cpu(), lambda: x.tolist(),
        lambda: torch.ones(2).to("cuda"), lambda: x[torch.tensor([0])],
    )  # fmt: skip
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in steps:
            with pytest.raises(RuntimeError, match="synchronizing"):
                step()
        assert torch.ones(2).pin_memory().to("cuda", non_blocking=True).is_cuda
    finally:
        torch.cuda.set_sync_debug_mode("default")


@triton.jit  # type: ignore[untyped-decorator]
def _add_one(x, N: tl.constexpr):  # type: ignore[no-untyped-def]
    at = tl.arange(0, N)
    tl.store(x + at, tl.load(x + at) + 1)


def test_a_graph_does_again_what_was_captured_with_what_lies_there_then() -> None:
    x, count = on_device(1.0, 2.0, 3.0, 4.0), torch.zeros(4, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _add_one[1,](count, N=4)
        count.add_(0)
        made = x * 2 + count
        shown = made.view(2, 2)
    assert count.tolist() == [0.0] * 4  # nothing ran
    assert made.isnan().all()
    for times in (1, 2):
        graph.replay()
        assert shown.flatten().tolist() == [2 * each + times for each in x.tolist()]
    x.fill_(5)
    graph.replay()
    assert made.tolist() == [13.0] * 4
    assert count.tolist() == [3.0] * 4


def test_what_a_graph_makes_is_its_own_from_step_to_step() -> None:
    """Memory that a captured step reads before it writes it has anything: other graphs have the same pool."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = torch.empty(2, device="cuda")
        out = kept + 1
        kept.fill_(1)
    for _ in range(2):
        graph.replay()
        assert out.isnan().all()


@pytest.mark.parametrize("what", ["item", "mask", "host", "index", "new numbers"])
def test_a_captured_step_waits_for_nothing(what: str) -> None:
    x = on_device(1.0, 2.0)
    steps = {
        "item": lambda: x.sum().item(), "mask": lambda: x[x > 1], "host": lambda: x.cpu(),
        "index": lambda: x[torch.tensor([1])], "new numbers": lambda: on_device(3.0),
    }  # fmt: skip
    with pytest.raises(RuntimeError, match="previous error during capture"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        steps[what]()
    assert x.tolist() == [1.0, 2.0]


def test_kernels_are_given_memory_of_the_device() -> None:
    with pytest.raises(ValueError, match="cpu tensor"):
        _add_one[1,](torch.ones(4), N=4)
    x = torch.ones(4, device="cuda")
    _add_one[1,](x, N=4)
    assert x.tolist() == [2.0] * 4
