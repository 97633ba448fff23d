"""A recorded step does again what it did, on the numbers that lie there then."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bestiary.nn.graphs import NotRecordable
from bestiary_cpu import between, products
from bestiary_cpu.pool import Call
from bestiary_cpu.program import Program
from bestiary_cpu.recorder import TorchCall
from bestiary_cpu.steps import NativeStepRecorder

WIDTH = 64


def record(step: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], Program]:
    with torch.inference_mode():
        results, replay = NativeStepRecorder().record(step)
    return results, replay  # type: ignore[return-value]


def replayed(program: Program) -> tuple[Tensor, ...]:
    with torch.inference_mode():
        return tuple(each.clone() for each in program())


def kernels(program: Program) -> list[str]:
    return [node.kernel if isinstance(node, Call) else "torch" for node in program.nodes]


def packed(n_out: int, n_in: int, seed: int) -> Tensor:
    weight = torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(seed))
    made = products.pack_plain(weight)
    assert made is not None
    return made


def test_what_follows_a_norm_or_an_activation_prepares_nothing() -> None:
    first, second, scale = packed(2 * WIDTH, WIDTH, 1), packed(WIDTH, WIDTH, 2), torch.rand(WIDTH)
    x = torch.randn(3, WIDTH)

    def step() -> tuple[Tensor, ...]:
        normed = between.rms_norm(x, scale, 1e-5)
        return (products.linear(between.silu_and_mul(products.linear(normed, first)), second),)

    (before,), program = record(step)
    assert kernels(program) == ["bst_norm", "bst_matmul", "bst_activation", "bst_matmul"]
    assert torch.equal(replayed(program)[0], before)
    x.normal_()
    with torch.inference_mode():
        assert torch.equal(replayed(program)[0], step()[0])


def test_what_torch_does_between_is_done_again() -> None:
    weight, x = packed(WIDTH, WIDTH, 1), torch.randn(2, WIDTH)

    def step() -> tuple[Tensor, ...]:
        sums = torch.zeros_like(x)
        y = products.linear(x * 2 + 1, weight).view(2, 2, -1).transpose(1, 2).reshape(2, -1)
        sums += y
        return sums, torch.tanh(y[:, :5].contiguous())

    before, program = record(step)
    assert kernels(program).count("bst_matmul") == 1
    for _ in range(2):
        assert all(torch.equal(got, want) for got, want in zip(replayed(program), before, strict=True))
    x.add_(1)
    with torch.inference_mode():
        assert all(torch.equal(got, want) for got, want in zip(replayed(program), step(), strict=True))


def test_what_holds_one_number_is_not_filled_again_unless_it_is_written_to() -> None:
    x, scale = torch.randn(2, WIDTH), torch.rand(WIDTH)
    _, program = record(lambda: between.fused_add_rms_norm(x, torch.zeros_like(x), scale, 1e-5))
    assert kernels(program) == ["bst_norm"]
    _, program = record(lambda: (torch.zeros(4).add_(1),))
    assert [isinstance(node, TorchCall) for node in program.nodes] == [True, True]
    assert replayed(program)[0].tolist() == replayed(program)[0].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    "step",
    [
        lambda x: (x[: int(x.sum())],),
        lambda x: (x[x > 0],),
        lambda x: (torch.nonzero(x),),
        lambda x: (x if bool((x == 0).any()) else x + 1,),
        lambda x: (torch.tensor(x.tolist()),),
    ],
)
def test_what_looks_at_numbers_is_refused(step: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
    x = torch.ones(4)
    with pytest.raises(NotRecordable, match="looks at numbers"):
        record(lambda: step(x))


def test_steps_of_one_recorder_share_their_memory() -> None:
    weight, recorder, inputs = packed(WIDTH, WIDTH, 1), NativeStepRecorder(), torch.randn(8, WIDTH)
    sizes, programs = [], []
    with torch.inference_mode():
        for rows in (8, 3, 5):
            results, replay = recorder.record(
                lambda rows=rows: (products.linear(products.linear(inputs[:rows], weight), weight),)
            )
            programs.append((rows, results[0].clone(), replay))
            del results
            sizes.append(recorder.arena.nbytes)
        assert len(set(sizes)) == 1
        for rows, want, replay in programs * 2:
            assert torch.equal(replay()[0], want) and len(want) == rows
