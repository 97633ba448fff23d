"""The method on the page about quantization, installed as a package of its own and used by its name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from bestiary import LLM
from bestiary.api.errors import UsageError
from bestiary.api.registry import ModelRegistry
from bestiary.testing.fake_site import Site
from bestiary.testing.logits import prompt_logits

PAGE = Path(__file__).resolve().parents[2] / "docs" / "quantization.md"
BLOCK = re.compile(r"^```python file=ternary.py\n(.*?)^```$", re.MULTILINE | re.DOTALL)
IDS = [5, 17, 3, 88, 42, 9]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=128,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    found = BLOCK.search(PAGE.read_text(encoding="utf-8"))
    assert found is not None
    site = Site(tmp_path / "site")
    site.add("ternary", hooks={"ternary": "ternary"}, source=found.group(1))
    monkeypatch.syspath_prepend(str(site.root))
    monkeypatch.setenv("BESTIARY_CACHE", str(tmp_path / "cache"))
    ModelRegistry.refresh()
    yield
    monkeypatch.undo()
    ModelRegistry.refresh()


def logits(path: Path, quantization: str | None) -> torch.Tensor:
    llm = LLM(str(path), dtype="float32", skip_tokenizer_init=True, progress=False, quantization=quantization)
    try:
        return prompt_logits(llm, IDS)
    finally:
        llm.close()


def test_a_method_of_ones_own(checkpoint: Path, installed: None) -> None:
    got = logits(checkpoint, "ternary")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.inference_mode():
        for name, weight in model.named_parameters():
            if "proj" in name:
                scale = weight.abs().mean(1, keepdim=True)
                weight.copy_((weight / scale).round().clamp(-1, 1) * scale)
        want = model(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_a_method_that_nobody_offers(checkpoint: Path) -> None:
    with pytest.raises(UsageError) as caught:
        logits(checkpoint, "ternary")
    assert "int8" in str(caught.value)
