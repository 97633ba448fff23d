"""Pooling methods and poolers over a flat batch, against the prompt's rows in one piece."""

import pytest
import torch
from torch import nn

from bestiary.api.errors import ConfigError, EngineError
from bestiary.api.pooling import PoolerConfig, PoolingParams
from bestiary.nn import (
    DispatchPooler,
    PoolingItem,
    PoolingMetadata,
    ReplicatedLinear,
    pooler_for_classify,
    pooler_for_embed,
)
from bestiary.nn.pooling import Partial
from bestiary.nn.pooling.methods import METHODS

HIDDEN = 24
WHOLE = {"LAST": lambda rows: rows[-1], "CLS": lambda rows: rows[0], "MEAN": lambda rows: rows.mean(0)}
RAW = PoolingParams(normalize=False)


def rows(length, seed=0):
    return torch.randn(length, HIDDEN, generator=torch.Generator().manual_seed(seed))


def steps(prompts, cuts, params=None):
    """The prompts cut at their own places, as one flat batch a step: (hidden states, metadata)."""
    partials = [Partial() for _ in prompts]
    starts = [0] * len(prompts)
    for step in range(max(map(len, cuts)) + 1):
        parts, items = [], []
        for index, prompt in enumerate(prompts):
            ends = [*cuts[index], len(prompt)]
            if step < len(ends):
                part = prompt[starts[index] : ends[step]]
                first = sum(map(len, parts))
                wanted = RAW if params is None else params[index]
                items.append(PoolingItem(first, len(part), starts[index], len(prompt), wanted, partials[index]))
                parts.append(part)
                starts[index] = ends[step]
        yield torch.cat(parts), PoolingMetadata(tuple(items))


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("cuts", [[[], []], [[1], [2, 5]], [[3, 4, 6], []], [[6], [1, 2, 3, 4]]])
def test_a_prompt_in_pieces_gives_what_the_whole_gives(kind, cuts):
    prompts, found = [rows(7), rows(9, seed=1)], []
    method = METHODS[kind]()
    for hidden, metadata in steps(prompts, cuts):
        made = method(hidden, metadata)
        assert len(made) == len(metadata.due)
        found += [(item.prompt_len, vector) for item, vector in zip(metadata.due, made, strict=True)]
    vectors = dict(found)
    assert sorted(vectors) == [7, 9]
    for prompt in prompts:
        torch.testing.assert_close(vectors[len(prompt)], WHOLE[kind](prompt), atol=1e-6, rtol=0)


def test_a_mean_is_the_same_to_the_last_bit_wherever_the_prompt_was_cut():
    prompt = rows(301) * torch.logspace(-3, 3, 301)[:, None]
    means = []
    for cuts in ([], [1], [100, 101, 250], list(range(1, 301))):
        for hidden, metadata in steps([prompt], [cuts]):
            made = METHODS["MEAN"]()(hidden, metadata)
        means += made
    assert all(torch.equal(means[0], each) for each in means)


@pytest.mark.parametrize("kind", ["CLS", "MEAN"])
def test_a_step_that_failed_is_repeated_also_with_another_cut(kind):
    prompt, partial, method = rows(8), Partial(), METHODS[kind]()

    def run(start, end):
        item = PoolingItem(0, end - start, start, len(prompt), RAW, partial)
        return method(prompt[start:end], PoolingMetadata((item,)))

    for start, end in ((0, 3), (0, 2), (2, 5), (2, 7), (2, 6), (6, 8)):
        made = run(start, end)
    torch.testing.assert_close(made[0], WHOLE[kind](prompt), atol=1e-6, rtol=0)
    with pytest.raises(EngineError, match="before 5"):
        run(5, 8)
    run(0, 8)  # its blocks were lost, and it begins anew


def test_methods_say_whether_they_need_more_than_the_last_token():
    assert {kind: method.reads_all for kind, method in METHODS.items()} == {"LAST": False, "CLS": True, "MEAN": True}
    assert not pooler_for_embed(PoolerConfig()).reads_all
    assert DispatchPooler(
        {"embed": pooler_for_embed(PoolerConfig()), "classify": pooler_for_classify(PoolerConfig(pooling_type="CLS"))}
    ).reads_all


def embed(params, prompt=None, pooler=None):
    pooler = pooler or DispatchPooler.for_embedding(PoolerConfig())
    ((hidden, metadata),) = steps([rows(5) if prompt is None else prompt], [[]], [params])
    (made,) = pooler(hidden, metadata)
    return made


def test_embeddings_are_cut_and_then_normalized():
    last = rows(5)[-1]
    torch.testing.assert_close(embed(RAW), last)
    torch.testing.assert_close(embed(PoolingParams()), last / last.norm())
    torch.testing.assert_close(embed(PoolingParams(dimensions=7)), last[:7] / last[:7].norm())
    torch.testing.assert_close(embed(PoolingParams(dimensions=7, normalize=False)), last[:7])


def test_half_precision_is_pooled_in_float32():
    prompt = rows(400).bfloat16()
    made = embed(RAW, prompt, DispatchPooler.for_embedding(PoolerConfig(pooling_type="MEAN")))
    assert made.dtype is torch.float32
    torch.testing.assert_close(made, prompt.float().mean(0), atol=1e-7, rtol=0)


def layer(out, seed=2):
    made = nn.Linear(HIDDEN, out)
    for param in made.parameters():
        nn.init.normal_(param, generator=torch.Generator().manual_seed(seed))
    return made.requires_grad_(False)


def test_a_projector_comes_before_the_cut_and_says_how_wide_vectors_are():
    projector = layer(11)
    pooler = pooler_for_embed(PoolerConfig(), projector=projector)
    assert (pooler.embedding_size, pooler_for_embed(PoolerConfig()).embedding_size) == (11, None)
    want = projector(rows(5)[-1])
    torch.testing.assert_close(embed(PoolingParams(dimensions=4), pooler=pooler), want[:4] / want[:4].norm())


@pytest.mark.parametrize(("classes", "activation"), [(3, lambda x: x.softmax(-1)), (1, torch.sigmoid)])
def test_classes_are_probabilities_unless_scores_are_asked_for(classes, activation):
    classifier = layer(classes)
    pooler = DispatchPooler.for_seq_cls(PoolerConfig(), classifier=classifier)
    scores = classifier(rows(5)[-1])
    torch.testing.assert_close(embed(PoolingParams(), pooler=pooler), activation(scores))
    torch.testing.assert_close(embed(RAW, pooler=pooler), scores)


def test_layers_of_ours_give_their_bias_beside_what_they_made(scope):
    classifier = ReplicatedLinear(HIDDEN, 3, bias=False)
    assert isinstance(classifier(torch.zeros(1, HIDDEN, device="meta")), tuple)
    pooler = pooler_for_classify(PoolerConfig(), classifier=classifier)
    hidden = torch.zeros(2, HIDDEN, device="meta")
    (made,) = pooler(hidden, PoolingMetadata((PoolingItem(0, 2, 0, 2, RAW, Partial()),)))
    assert made.shape == (3,)


def test_each_prompt_goes_to_the_pooler_of_its_task():
    classifier = layer(3)
    pooler = DispatchPooler({
        "embed": pooler_for_embed(PoolerConfig(pooling_type="MEAN")),
        "classify": pooler_for_classify(PoolerConfig(), classifier=classifier),
    })  # fmt: skip
    assert pooler.get_supported_tasks() == ("embed", "classify")
    prompts = [rows(6 + index, seed=index) for index in range(4)]
    tasks = ["classify", None, "embed", "classify"]
    params = [PoolingParams(task=task, normalize=False) for task in tasks]
    found = {}
    for hidden, metadata in steps(prompts, [[2], [4], [1, 3], []], params):
        made = pooler(hidden, metadata)
        found |= {item.prompt_len: vector for item, vector in zip(metadata.due, made, strict=True)}
    assert len(found) == 4
    for prompt, task in zip(prompts, tasks, strict=True):
        want = classifier(prompt[-1]) if task == "classify" else prompt.mean(0)
        torch.testing.assert_close(found[len(prompt)], want, atol=1e-6, rtol=0)


def test_a_pooler_without_tasks_is_refused():
    with pytest.raises(ConfigError, match="at least one task"):
        DispatchPooler({})
