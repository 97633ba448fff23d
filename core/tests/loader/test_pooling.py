"""How a model's files say that they are pooled."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bestiary.api.errors import ConfigError
from bestiary.engine.loader.pooling import FILE, stated_pooling

MODES = dict.fromkeys(
    ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"), False
)


def write(folder: Path, **modes: object) -> None:
    (folder / FILE).parent.mkdir(exist_ok=True)
    fields = {f"pooling_mode_{name}": value for name, value in {**MODES, **modes}.items()}
    (folder / FILE).write_text(json.dumps({"word_embedding_dimension": 8, **fields, "include_prompt": True}))


@pytest.mark.parametrize(("mode", "kind"), [("cls_token", "CLS"), ("mean_tokens", "MEAN"), ("lasttoken", "LAST")])
def test_sentence_transformers(mode: str, kind: str, tmp_path: Path) -> None:
    assert stated_pooling(tmp_path) is None
    write(tmp_path, **{mode: True})
    assert stated_pooling(tmp_path) == kind


@pytest.mark.parametrize("modes", [{}, {"max_tokens": True}, {"mean_tokens": True, "lasttoken": True}])
def test_what_is_not_one_of_ours_is_refused(modes: dict[str, bool], tmp_path: Path) -> None:
    write(tmp_path, **modes)
    with pytest.raises(ConfigError) as caught:
        stated_pooling(tmp_path)
    assert caught.value.field == FILE
    assert "--pooling-type" in str(caught.value)


@pytest.mark.parametrize(("value", "kind"), [(None, None), (0, None), (1, "MEAN"), (2, "CLS"), (3, "LAST")])
def test_gguf(value: int | None, kind: str | None, tmp_path: Path) -> None:
    metadata: dict[str, object] = {"general.architecture": "llama"}
    if value is not None:
        metadata["llama.pooling_type"] = value
    assert stated_pooling(tmp_path, metadata) == kind


def test_a_gguf_file_for_ranking_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        stated_pooling(tmp_path, {"general.architecture": "llama", "llama.pooling_type": 4})
    assert (caught.value.field, caught.value.value) == ("llama.pooling_type", 4)
