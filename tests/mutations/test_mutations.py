"""The contracts notice small mistakes in model files, every one that is tried."""

from collections.abc import Iterator
from importlib import import_module

import pytest

from .run import HEAD, PAGE, free, mutated, noted, noticed_by
from .table import MUTATIONS


@pytest.fixture(autouse=True, scope="module")
def references_are_freed() -> Iterator[None]:
    yield
    free()


def describe(mutation):
    return f"{mutation.module.partition('.')[2]}: {mutation.what}"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=describe)
def test_a_mistake_is_noticed_by_the_check_on_the_page(mutation):
    check = noted(mutation)
    assert check is not None, "python -m tests.mutations.run writes the page"
    assert noticed_by(mutation, only={check}) == check


@pytest.mark.full
@pytest.mark.parametrize("mutation", MUTATIONS, ids=describe)
def test_no_earlier_check_notices_it(mutation):
    assert noticed_by(mutation) == noted(mutation)


@pytest.mark.parametrize("each", {each.module: each for each in MUTATIONS}.values(), ids=lambda each: each.module)
def test_the_file_as_it_is_passes_by_the_same_way(each):
    checks = {"weights_complete", "logits", "pipeline", "tensor_parallel (TP 2)"}
    assert noticed_by(each._replace(new=each.old), only=checks) is None


def test_many_were_tried():
    assert PAGE.read_text(encoding="utf-8").startswith(HEAD)
    assert len(MUTATIONS) >= 40
    assert len({each.contract for each in MUTATIONS}) >= 7


def test_the_right_file_is_put_back():
    right = import_module(MUTATIONS[0].module)
    with mutated(MUTATIONS[0]):
        assert import_module(MUTATIONS[0].module) is not right
    assert import_module(MUTATIONS[0].module) is right
