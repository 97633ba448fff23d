"""The contracts notice small mistakes in model files, every one that is tried."""

from importlib import import_module

import pytest

from .run import PAGE, mutated, noticed_by, row
from .table import MUTATIONS


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: f"{each.module.partition('.')[2]}: {each.what}")
def test_a_mistake_is_noticed(mutation):
    check = noticed_by(mutation)
    assert check is not None
    assert row(mutation, check) in PAGE.read_text(encoding="utf-8"), "python -m tests.mutations.run writes the page"


@pytest.mark.parametrize("each", {each.module: each for each in MUTATIONS}.values(), ids=lambda each: each.module)
def test_the_file_as_it_is_passes_by_the_same_way(each):
    assert (
        noticed_by(each._replace(new=each.old), only={"weights_complete", "logits", "pipeline", "tensor_parallel"})
        is None
    )


def test_many_were_tried():
    assert len(MUTATIONS) >= 40
    assert len({each.contract for each in MUTATIONS}) >= 7


def test_the_right_file_is_put_back():
    right = import_module(MUTATIONS[0].module)
    with mutated(MUTATIONS[0]):
        assert import_module(MUTATIONS[0].module) is not right
    assert import_module(MUTATIONS[0].module) is right
