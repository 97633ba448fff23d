"""What one layer launches in a decode step, for test_launches.py; kernels are emulated (`emulated.py`).

Prints for each model, as JSON, the kernels and torch's ops in order; views and allocations launch nothing. An eager
step pays for each on the host, a recorded one some microseconds on the device, which is what few rows are bound by.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import emulated
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime.jit import JITFunction
from whole_models import CONFIGS, SIZES

from bestiary import LLM, SamplingParams

VIEWS = frozenset(
    {
        "view", "_unsafe_view", "reshape", "t", "transpose", "slice", "select", "unsqueeze", "squeeze", "expand",
        "split", "split_with_sizes", "chunk", "unbind", "detach", "alias", "as_strided", "permute", "flatten", "narrow",
        "empty", "empty_like", "empty_strided", "new_empty",
    }
)  # fmt: skip
MODELS: dict[str, tuple[Any, dict[str, object]]] = {
    "mistral": (CONFIGS["mistral with a window"], {}),
    "qwen3": (transformers.Qwen3Config(**SIZES), {}),
    "qwen3_moe": (CONFIGS["qwen3_moe"], {}),
    "qwen3_moe in int4": (
        transformers.Qwen3MoeConfig(
            **{**SIZES, "hidden_size": 64, "moe_intermediate_size": 64, "num_experts": 5, "num_experts_per_tok": 2}
        ),
        {"quantization": "int4"},
    ),
    "bloom": (CONFIGS["bloom"], {}),
}
PROMPTS = [[5, 9, 3, 77, 40, 8], [61, 12, 12, 90, 33, 7, 50, 21, 4]]

launched: list[str] = []


class Noting(TorchDispatchMode):
    """Notes every op that computes."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            launched.append(name)
        return func(*args, **(kwargs or {}))


def noting_kernels(run: Callable[..., Any]) -> Callable[..., Any]:
    def noted(self: Any, *args: Any, **options: Any) -> Any:
        launched.append(self.__name__)
        with _disable_current_modes():
            return run(self, *args, **options)

    return noted


def last_layer(model: torch.nn.Module) -> torch.nn.Module:
    lists = [each for each in model.modules() if isinstance(each, torch.nn.ModuleList)]
    return lists[0][-1]


def of_a_layer(folder: str, rows: int, options: dict[str, object]) -> list[str]:
    """What the last layer launches in a step of so many rows, one token each."""
    with LLM(
        folder, kernels="torch", skip_tokenizer_init=True, progress=False, device="cpu", dtype="float16",
        num_gpu_blocks_override=64, **options,
    ) as llm:  # fmt: skip
        layer = last_layer(llm.engine.executor.runner.model)
        forward, noted = layer.forward, []

        def watched(*args: Any, **given: Any) -> Any:
            launched.clear()
            with Noting():
                made = forward(*args, **given)
            noted[:] = launched
            return made

        layer.forward = watched  # type: ignore[method-assign]
        params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
        llm.generate([{"prompt_token_ids": ids} for ids in PROMPTS[:rows]], params, use_tqdm=False)
        return noted


def main() -> None:
    emulated.start_program()
    JITFunction.run = noting_kernels(JITFunction.run)
    found = {}
    for name, (config, options) in MODELS.items():
        folder = tempfile.mkdtemp()
        torch.manual_seed(1)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        found[name] = {rows: of_a_layer(folder, rows, options) for rows in (1, 2)}
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
