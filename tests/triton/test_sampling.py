"""Draws: the reference against exact probabilities and the kernels against the reference."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from emulated import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from bestiary.nn.ops import sampling as reference
from bestiary.nn.triton import draws, sampling

_DRAW = reference.draw_tokens.reference


def _options(rows: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0) -> list:
    return [
        torch.full((rows,), temperature), torch.full((rows,), top_k, dtype=torch.int32),
        torch.full((rows,), top_p), torch.full((rows,), min_p),
    ]  # fmt: skip


def _keys(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.full((rows,), seed), torch.arange(rows)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3


def test_philox_is_the_published_one() -> None:
    """Known answers of Random123: a zero key and counter, and all ones (here in three words of four) differ."""
    zero = torch.zeros(1, dtype=torch.int64)
    assert int(reference.philox(zero, zero, zero)) == 0x6627E8D5


@pytest.mark.parametrize("seed", [1, -5, 1 << 40])
def test_draws_have_the_distribution_they_are_asked_for(seed: int) -> None:
    logits, count = _random(1, 12), 40_000
    drawn = _DRAW(logits.expand(count, -1), *_keys(count, seed), *_options(count, temperature=1.5))
    wanted = torch.softmax(logits[0] / 1.5, 0) * count
    found = torch.bincount(drawn, minlength=12)
    assert float(((found - wanted) ** 2 / wanted).sum()) < 31.3  # chi-square, 11 degrees of freedom: p = 0.001


@pytest.mark.parametrize("module", [reference, sampling], ids=["reference", "triton"])
@pytest.mark.parametrize("cut", [1, 40, 2100])
def test_parts_draw_what_the_whole_draws(module: Any, cut: int) -> None:
    """Greedy and free rows; the larger of two parts' scores is that of both; the lowest id wins a tie."""
    logits = _random(4, 2300)
    logits[3] = 0.0
    keys, temperature = _keys(4, 11), torch.tensor([0.0, 0.7, 1.5, 0.0])
    options = _options(4)
    wanted = _DRAW(logits, *keys, temperature, *options[1:])
    op = module.draw_from_part
    scores, ids = zip(
        *((op.reference if module is reference else op)(part, *keys, temperature, first)
          for part, first in ((logits[:, :cut], 0), (logits[:, cut:], cut))), strict=True,
    )  # fmt: skip
    best = torch.stack(scores).max(0).indices
    assert torch.stack(ids).gather(0, best.unsqueeze(0))[0].tolist() == wanted.tolist()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_parts_say_where_a_row_is_no_distribution() -> None:
    logits = _random(4, 60)
    logits[0, 3], logits[1, 3], logits[2] = torch.nan, torch.inf, -torch.inf
    for draw in (reference.draw_from_part.reference, sampling.draw_from_part):
        scores, _ = draw(logits, *_keys(4), torch.ones(4), 64)
        assert scores.isnan().tolist() == [True, True, False, False]
        assert scores.isinf().tolist() == [False, False, True, False]


@pytest.mark.gpu
def test_parts_on_a_gpu() -> None:
    logits = _random(64, 128_256).cuda().bfloat16()
    keys, temperature = [each.cuda() for each in _keys(64, 3)], torch.full((64,), 0.8, device="cuda")
    wanted = reference.draw_from_part.reference(logits[:, 1000:], *keys, temperature, 1000)
    found = sampling.draw_from_part(logits[:, 1000:], *keys, temperature, 1000)
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-5, atol=1e-5)
    assert float((found[1] == wanted[1]).float().mean()) > 0.98  # scores that differ by a rounding may change places


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, {3, 1}),
        ({"top_p": 0.6}, {3, 1}),
        ({"top_p": 0.4}, {3}),
        ({"min_p": 0.4}, {3, 1}),
        ({"top_k": 3, "top_p": 0.9}, {3, 1, 0}),
        ({"top_k": 3, "top_p": 0.85}, {3, 1}),
        ({"top_k": 100}, {0, 1, 2, 3}),
        ({"temperature": 0.0, "top_k": 4}, {3}),
    ],
)
def test_truncation_keeps_exact_sets(options: dict[str, float], kept: set[int]) -> None:
    logits = torch.tensor([[0.14, 0.3, 0.06, 0.5]]).log()
    drawn = _DRAW(logits.expand(400, -1), *_keys(400), *_options(400, **options))
    assert set(drawn.tolist()) == kept
    again = draws.draw_tokens(logits.expand(10, -1), *_keys(10), *_options(10, **options))
    assert torch.equal(again, drawn[:10])


@settings(max_examples=examples(12), deadline=None)
@given(
    rows=st.integers(0, 3), width=st.sampled_from([1, 7, 300, 4099]), seed=st.integers(-(2**63), 2**63 - 1),
    position=st.integers(0, 2**40), temperature=st.sampled_from([0.0, 0.7, 2.0]), top_k=st.sampled_from([0, 1, 20]),
    top_p=st.sampled_from([1.0, 0.83]), min_p=st.sampled_from([0.0, 0.013]),
)  # fmt: skip
def test_kernel_equals_reference(
    rows: int, width: int, seed: int, position: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    keys = torch.full((rows,), seed), torch.arange(rows) + position
    given_ = (_random(rows, width), *keys, *_options(rows, temperature, top_k, top_p, min_p))
    assert torch.equal(draws.draw_tokens(*given_), _DRAW(*given_))


@pytest.mark.parametrize(("room", "depth"), [(16, 12.0), (4096, 0.5), (128, 3.0)])
@pytest.mark.parametrize(
    "options", [{"top_k": 30}, {"top_p": 0.9}, {"min_p": 0.01}, {"top_k": 200, "top_p": 0.9, "min_p": 0.001}]
)
def test_rows_with_much_to_draw_from(
    options: dict[str, float], room: int, depth: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many ids are near, or too few for what is kept: the whole row is looked at."""
    monkeypatch.setattr(draws, "_ROOM", room)
    monkeypatch.setattr(draws, "_DEPTH", depth)
    given_ = (_random(6, 400), *_keys(6, 5), *_options(6, 0.8, **options))
    assert torch.equal(draws.draw_tokens(*given_), _DRAW(*given_))


def test_rows_do_not_depend_on_one_another() -> None:
    logits, options = _random(3, 50), _options(3, 0.9, 20, 0.9)
    together = draws.draw_tokens(logits, *_keys(3), *options)
    alone = draws.draw_tokens(logits[2:], torch.tensor([0]), torch.tensor([2]), *(each[2:] for each in options))
    assert int(alone) == int(together[2])


@pytest.mark.parametrize("draw", [_DRAW, draws.draw_tokens])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_a_finite_maximum_draws_nothing(draw, temperature: float) -> None:  # type: ignore[no-untyped-def]
    logits = torch.zeros(5, 6)
    logits[0, 2], logits[1, 2], logits[2] = math.nan, math.inf, -math.inf
    logits[3, :5] = -math.inf
    drawn = draw(logits, *_keys(5), *_options(5, temperature, top_k=3, top_p=0.9)).tolist()
    assert drawn[:4] == [-1, -1, -1, 5]
    assert drawn[4] in range(6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 100, 8193])
def test_best_tokens(width: int, dtype: torch.dtype) -> None:
    logits = _random(4, width).round().to(dtype)
    logits[1], logits[2, -1] = -math.inf, math.nan
    peaks, ids = sampling.best_tokens(logits)
    first = [int((row == row.max()).nonzero()[0]) if not row.isnan().any() else width - 1 for row in logits]
    assert ids.tolist() == first
    assert torch.equal(peaks.isnan(), logits.amax(1).isnan())
    assert torch.equal(peaks.nan_to_num(), logits.amax(1).nan_to_num())


@pytest.mark.gpu
def test_on_a_gpu() -> None:
    given_ = (_random(64, 128256), *_keys(64), *_options(64, 0.8, 50, 0.95))
    drawn = draws.draw_tokens(*(each.cuda() for each in given_)).cpu()
    assert int((drawn == _DRAW(*given_)).sum()) >= 62  # sums and logarithms may differ in their last bits
