"""The workbench of one contract: references, checkpoints and engines, each made once and freed with the class."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from bestiary.api.config import VllmConfig
from bestiary.api.outputs import CompletionOutput
from bestiary.api.sampling import SamplingParams
from bestiary.engine.arguments import EngineArgs
from bestiary.engine.build import EngineBuilder
from bestiary.engine.executor import UniprocExecutor
from bestiary.engine.loader.load import build_model
from bestiary.engine.runner import ModelRunner
from bestiary.nn.placement import materialize
from bestiary.serve.llm import LLM

from .base import BASE
from .logits import prompt_logits
from .reference import randomize, reference_logits, save_reference

if TYPE_CHECKING:
    from .base import ContractBase

LENGTHS = (1, 5, 17, 40)
"""The prompts that every model answers: one token, less than a block, a block and one, several blocks."""
LONGEST = 256
TOKENS = 16
"""How many tokens are drawn after each prompt."""


class Workbench:
    """What the checks of one contract work with. Nothing is made before it is asked for."""

    def __init__(self, contract: ContractBase) -> None:
        self.contract = contract
        self.folder = Path(tempfile.mkdtemp(prefix="bestiary-contract-"))
        self._remove = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)  # at exit, if not before
        self._references: dict[str, nn.Module] = {}
        self._engines: dict[tuple[object, ...], LLM] = {}
        self._expected: dict[tuple[object, ...], torch.Tensor] = {}

    def config(self, variant: str = BASE) -> dict[str, Any]:
        """`config.json`'s fields of the base or of a variant."""
        return {**(self.contract.config or {}), **({} if variant == BASE else self.contract.variants[variant])}

    def reference(self, variant: str = BASE) -> nn.Module:
        """The reference model, its weights random and the same in every run."""
        if variant not in self._references:
            torch.manual_seed(0)
            model = self.contract.reference(self.config(variant)).eval()
            randomize(model)
            reference_logits(model, [0])  # one that gives no logits is an error now, whatever is asked of it later
            self._references[variant] = model
        return self._references[variant]

    def checkpoint(self, variant: str = BASE) -> Path:
        """The reference as a model directory."""
        path = self.folder / f"{[BASE, *self.contract.variants].index(variant)}"
        if not path.exists():
            save_reference(self.reference(variant), path, self.config(variant), self.contract.architecture)
        return path

    def tensors(self, variant: str = BASE) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors, as the reference wrote them."""
        files = sorted(self.checkpoint(variant).glob("*.safetensors"))
        return {name: tensor for file in files for name, tensor in load_file(file).items()}

    def llm(self, model: Path | None = None, **options: Any) -> LLM:
        """An engine over `model` (default: the base checkpoint), in float32 unless told otherwise."""
        path = str(model or self.checkpoint())
        key = (path, *sorted(options.items()))
        if key not in self._engines:
            self._engines[key] = LLM(path, **{**_PLAIN, **options})
        return self._engines[key]

    def fresh_llm(self, **options: Any) -> LLM:
        """An engine over the base checkpoint for one use, whose weights may be changed."""
        return LLM(str(self.checkpoint()), **{**_PLAIN, **options})

    def runner(self, llm: LLM) -> ModelRunner:
        """What runs the model of a live engine of this process."""
        executor = llm.engine.executor
        if not isinstance(executor, UniprocExecutor) or executor.runner is None:
            raise TypeError("the model of a live LLM in this process is wanted")
        return executor.runner

    def model(self, llm: LLM) -> nn.Module:
        model: nn.Module = self.runner(llm).model
        return model

    def expected(self, token_ids: Sequence[int], variant: str = BASE) -> torch.Tensor:
        """The reference's logits ``[len(token_ids), vocabulary]``."""
        key = (variant, *token_ids)
        if key not in self._expected:
            self._expected[key] = reference_logits(self.reference(variant), token_ids)
        return self._expected[key]

    def prompts(self, variant: str = BASE) -> list[list[int]]:
        """Random prompts of every length in `LENGTHS`, the same in every run."""
        vocabulary = int(self.expected([0], variant).shape[-1])
        generator = torch.Generator().manual_seed(3)
        return [torch.randint(0, vocabulary, (length,), generator=generator).tolist() for length in LENGTHS]

    def longest_prompt(self, variant: str = BASE) -> list[list[int]]:
        """A prompt that fills the context and shows where a table of positions ends; none beyond `LONGEST`."""
        length = getattr(getattr(self.reference(variant), "config", None), "max_position_embeddings", None)
        length = self.config(variant).get("max_position_embeddings") if length is None else length
        if not isinstance(length, int) or not LENGTHS[-1] < length <= LONGEST:
            return []
        *_, last = self.prompts(variant)
        return [(last * (length // len(last) + 1))[:length]]

    def logits(
        self, token_ids: Sequence[int], llm: LLM | None = None, chunk: int | None = None, lora_id: str | None = None
    ) -> torch.Tensor:
        """Our logits ``[len(token_ids), vocabulary]``, in float32; `lora_id`: of an adapter that is in a slot."""
        return prompt_logits(llm or self.llm(), token_ids, chunk, lora_id).float()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        llm: LLM | None = None,
        tokens: int = TOKENS,
        adapters: Sequence[str | None] | None = None,
    ) -> list[CompletionOutput]:
        """Greedy answers of `tokens` tokens each, all prompts together, each by its adapter, if it has one."""
        greedy = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, logprobs=2)
        given = [{"prompt_token_ids": list(ids)} for ids in prompts]
        return [
            each.outputs[0]
            for each in (llm or self.llm()).generate(given, greedy, use_tqdm=False, lora_request=adapters)
        ]

    def build(self, variant: str = BASE, model_path: Path | None = None) -> tuple[nn.Module, VllmConfig]:
        """The class built and placed, with memory and without weights; for a variant, or for a model directory."""
        model_class, config = self.configure(variant, model_path)
        model = build_model(model_class, config)
        materialize(model, torch.device("cpu"))
        return model, config

    def configure(self, variant: str = BASE, model_path: Path | None = None) -> tuple[type[nn.Module], VllmConfig]:
        """The class, and the configuration that it is built with."""
        args = EngineArgs.make(str(model_path or self.checkpoint(variant)), _PLAIN)
        return EngineBuilder(args).configure()

    def drop(self, model: Path) -> None:
        """Free the engines over `model`."""
        for key in [key for key in self._engines if key[0] == str(model)]:
            self._engines.pop(key).close()

    def drop_all(self) -> None:
        """Free all engines; references and checkpoints stay."""
        for llm in self._engines.values():
            llm.close()
        self._engines.clear()

    def close(self) -> None:
        self.drop_all()
        self._references.clear()
        self._remove()


_PLAIN: Mapping[str, Any] = {
    "kernels": "torch",
    "dtype": "float32",
    "device": "cpu",
    "skip_tokenizer_init": True,
    "progress": False,
}
