"""Engines whose kernels are compiled as a launch on an H100 would compile them, and are not launched.

    python tests/triton/dry.py [--few]

What a kernel is compiled for follows from the arguments: numbers that are 1 become constants, others are known to be
multiples of 16, pointers may be missing. Neither the interpreter nor a list of variants shows what that does to the
code, so here engines run as they would, on a CPU, with kernels that do nothing and memory that is zero. Prints a line
for each engine; exit status 1 where one fails, or a kernel does not fit.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
import transformers
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from bestiary import LLM, LoRARequest, SamplingParams
from bestiary.nn.attention import triton as backend
from bestiary.nn.lora.rows import SlotRows
from bestiary.nn.ops import registry
from bestiary.nn.ops.gguf import BlockRows
from bestiary.nn.ops.product import Product
from bestiary.nn.triton import (
    attend,
    available,
    dequant,
    experts,
    fp8_blocks,
    gguf_blocks,
    grouped,
    int8,
    linear,
    lora_tiles,
    planes,
    sampling,
    stacked,
    step,
)
from bestiary.nn.triton import draws as truncated
from bestiary.testing.adapters import random_adapter, write_adapter

SHARED, GRID = 227 * 1024, (2**31 - 1, 65535, 65535)


class Driver:
    """What the compiler asks of a GPU."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


launched: dict[Any, str] = {}
"""Each compiled kernel, by its name."""
launches: Counter[str] = Counter()
"""How often an engine, or a call, launched each kernel."""
_compiling: Callable[..., Any] = JITFunction.run


def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
    made = _compiling(self, *args, grid=grid, warmup=True, **options)
    sizes = (*grid, 1, 1)[:3]
    if not all(0 < size <= most for size, most in zip(sizes, GRID, strict=True)):
        raise ValueError(f"{self.__name__} cannot be launched {sizes} times")
    if made.metadata.shared > SHARED:
        raise ValueError(f"{self.__name__} needs {made.metadata.shared} bytes of shared memory")
    launched[made] = self.__name__
    launches[self.__name__] += 1
    return made


def zeros(make: Callable[..., Any]) -> Callable[..., Any]:
    """What nobody fills is zero, so that ids are ids."""
    return lambda *args, **options: make(*args, **options).zero_()


COMMON = {"vocab_size": 160, "max_position_embeddings": 4096, "eos_token_id": 2}
SIZES = {
    **COMMON, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64,
}  # fmt: skip
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**SIZES),
    "one key head": lambda: transformers.LlamaConfig(**{**SIZES, "num_key_value_heads": 1}),
    "odd sizes": lambda: transformers.LlamaConfig(
        **{**SIZES, "hidden_size": 72, "intermediate_size": 100, "num_attention_heads": 3, "num_key_value_heads": 3,
           "head_dim": 24, "vocab_size": 161}
    ),
    "mistral": lambda: transformers.MistralConfig(**SIZES, sliding_window=70),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(**SIZES, **MOE),
    "one expert a token": lambda: transformers.Qwen3MoeConfig(**SIZES, **{**MOE, "num_experts_per_tok": 1}),
    "bloom": lambda: transformers.BloomConfig(**COMMON, hidden_size=128, n_layer=1, n_head=4),
}  # fmt: skip
ENGINES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in MODELS),
    ("llama", {"deterministic": True}),
    ("qwen3_moe", {"deterministic": True}),
    ("llama", {"kv_cache_dtype": "fp8"}),
    ("llama", {"dtype": "float32"}),
    *(("qwen3_moe", {"quantization": method}) for method in ("int8", "int4", "fp8")),
    ("odd sizes", {"quantization": "int4"}),
    ("qwen3_moe", {"quantization": "int4", "deterministic": True}),
    *((name, {"enable_lora": True, "max_lora_rank": 8}) for name in ("llama", "qwen3_moe")),
    ("llama", {"enable_lora": True, "deterministic": True}),
]


LENGTHS = ([1], [5, 1300, 17, 1], [4] * 12, [3] * 18)
"""Of prompts that come together: few rows, some, and many; long ones and short ones."""
OTHERS = ([2], [16] * 16, [640, 1, 1, 1, 1], [64, 7], [33])
"""The same in other numbers, for which no kernel may have to be compiled again: a request would wait for it."""


def run(name: str, options: dict[str, Any]) -> None:
    """Prompts short and long, alone and together, greedy and drawn."""
    with tempfile.TemporaryDirectory() as folder:
        config = MODELS[name]()
        config.architectures = [type(config).__name__.removesuffix("Config") + "ForCausalLM"]
        config.save_pretrained(folder)
        plain = {
            "load_format": "dummy", "skip_tokenizer_init": True, "progress": False, "device": "cpu",
            "dtype": "bfloat16", "kernels": "torch", "num_gpu_blocks_override": 600, "max_num_batched_tokens": 600,
        }  # fmt: skip
        with LLM(folder, **{**plain, **options}) as llm:
            drawn = SamplingParams(temperature=0.8, top_k=5, top_p=0.9, seed=3, max_tokens=3, ignore_eos=True)
            greedy = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logprobs=2)
            adapter = _adapter(config, folder) if "enable_lora" in options else None
            for params, given in ((greedy, LENGTHS), (drawn, LENGTHS), (greedy, OTHERS), (drawn, OTHERS)):
                before = set(launched)
                for lengths in given:
                    prompts = [{"prompt_token_ids": [3 + at % 100 for at in range(length)]} for length in lengths]
                    asked = [adapter if at % 3 < 2 else None for at in range(len(prompts))]
                    llm.generate(prompts, params, use_tqdm=False, lora_request=asked if adapter else None)
                if given is OTHERS and launched.keys() - before:
                    again = sorted({launched[each] for each in launched.keys() - before})
                    raise ValueError(f"other lengths compile {', '.join(again)} again")
            layers = [each for each in llm.engine.executor.runner.model.modules() if hasattr(each, "backend")]
            if not layers[0].backend.name.startswith("triton"):
                raise ValueError(f"attention is by {layers[0].backend.name}")
            tiled = bool(launches["_shrink_tile"] and launches["_expand_tile"])
            if adapter and not (launches["_shrink"] and tiled is not options.get("deterministic", False)):
                raise ValueError(f"adapters are by {dict(launches)}")


def _adapter(config: Any, folder: str) -> LoRARequest:
    """One on every projection."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    weights = {name.removesuffix(".weight"): each for name, each in model.named_parameters() if "_proj" in name}
    return LoRARequest("one", lora_path=write_adapter(Path(folder) / "one", random_adapter(weights)))


def draws() -> None:
    """Of one row and of others, whose numbers lie anywhere in memory."""
    for width in (1, 151_936, 1001):
        for rows in (1, 9, 4):
            before = set(launched)
            logits = torch.ones(rows, width)
            whole, shares = torch.ones(4, rows, dtype=torch.int64), torch.ones(3, rows)
            sampling.best_tokens(logits)
            truncated.draw_tokens(logits.bfloat16(), whole[0], whole[1], shares[0], whole[3].int(), *shares[1:])
            sampling.draw_from_part(logits, whole[0], whole[1], shares[0], 1)
            if rows > 1 and launched.keys() - before:
                raise ValueError(f"{rows} rows compile kernels again")


def adapters() -> None:
    for count, rank, width in ((3, 1, 1), (3, 20, 100), (70, 8, 64), (70, 1, 100), (3000, 20, 1), (9000, 128, 64)):
        slots = SlotRows.of([0] * count, torch.device("cpu"))
        x, out = torch.ones(count, width).bfloat16(), torch.ones(count, 96).bfloat16()
        a, b = torch.ones(2, 2, rank, width).bfloat16(), torch.ones(2, 96, rank).bfloat16()
        lora_tiles.add_lora(out, x, a, b, [32, 64], slots, {0: rank})
        table = torch.ones(2, 160, rank).bfloat16()
        lora_tiles.add_lora_embedding(out, torch.zeros(count, dtype=torch.int64), table, b, slots, {0: rank})


def products() -> None:
    """Of every kind of weight, plain and stacked, for one row and for many."""
    for rows in (1, 70):
        for depth in (256, 40):
            x = torch.ones(rows, depth).bfloat16()
            for product in _kinds(depth):
                one = product.at(0)
                for tensors in (one.tensors, _in_planes(one)):
                    getattr(HOME[one.op.name], one.op.name)(x, **tensors, **one.settings)
                if stacked.why_not(product) is None:
                    weights, slots = torch.ones(rows, 1), torch.zeros(rows, 1, dtype=torch.int64)
                    experts.grouped_experts(x, product, product, weights, slots, torch.relu)


def _in_planes(product: Product) -> Mapping[str, torch.Tensor]:
    """The tensors of one product, its weight packed as engines pack it."""
    if product.op.name != "linear_gguf":
        return product.tensors
    weight = product.tensors["weight"].clone()
    packed = planes.pack_gguf(weight, product.settings["runs"])
    return product.tensors if packed is None else {"weight": packed}


HOME = {
    "linear": linear, "linear_gguf": dequant, "linear_int8_int8": int8,
    **dict.fromkeys(("linear_int8", "linear_fp8", "linear_int4", "linear_uint8", "linear_codebook"), grouped),
}  # fmt: skip


def _kinds(depth: int) -> Iterator[Product]:
    """Three experts' products each, from so many inputs to as many outputs."""
    ops, groups = registry.OPS, -(-depth // 32)
    codes, half = (torch.zeros(3, depth, each, dtype=torch.uint8) for each in (depth, -(-depth // 2)))
    row, by_group, zero = torch.ones(3, depth, 1), torch.ones(3, depth, groups), torch.ones(3, depth, groups).byte()
    e4m3 = codes.view(torch.float8_e4m3fn)
    yield Product(ops["linear"], {"weight": codes.bfloat16()})
    yield Product(ops["linear_int8"], {"weight": codes.char(), "scale": row[..., 0]})
    for symmetric in (True, False):
        tensors = {"weight": codes.char(), "scale": row[..., 0]}
        yield Product(ops["linear_int8_int8"], tensors, {"symmetric": symmetric})
    yield Product(ops["linear_fp8"], {"weight": e4m3, "scale": row}, {"group_size": 128})
    yield Product(ops["linear_fp8"], {"weight": e4m3, "scale": by_group}, {"group_size": 32})
    for size in (32, 7):
        scales = {
            "scale": torch.ones(3, depth, -(-depth // size)),
            "zero": torch.ones(3, depth, -(-depth // size)).byte(),
        }
        yield Product(ops["linear_int4"], {"weight": half, **scales}, {"group_size": size})
        yield Product(ops["linear_uint8"], {"weight": codes, **scales}, {"group_size": size})
    listed = {"weight": half, "scale": by_group, "zero": zero, "order": torch.zeros(3, depth, dtype=torch.int32)}
    yield Product(ops["linear_int4"], listed, {"group_size": 32})
    table = {"weight": half, "scale": by_group, "codebook": torch.ones(3, 16)}
    yield Product(ops["linear_codebook"], table, {"group_size": 32})
    for kind in sorted(gguf_blocks.FORMATS):
        if depth % kind.block_size == 0:
            row_bytes = depth // kind.block_size * kind.type_size
            run = BlockRows(kind, 0, depth, row_bytes)
            blocks = torch.zeros(3, depth, row_bytes, dtype=torch.uint8)
            yield Product(ops["linear_gguf"], {"weight": blocks}, {"runs": [run]})


def rounded_products() -> None:
    """fp8 activations: experts, and the layers that torch's product does not take."""
    x, weight = torch.ones(5, 256).bfloat16(), torch.zeros(3, 256, 256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    op = registry.OPS["linear_fp8_fp8"]
    for scale, by in ((torch.ones(3, 256, 1), None), (torch.ones(3, 256, 2), 128), (torch.ones(3, 256, 2), None)):
        for given in ({}, {"input_scale": torch.ones(3)}) if by is None else ({},):
            settings = {"group_size": 128, "input_group": by}
            product = Product(op, {"weight": weight, "scale": scale, **given}, settings)
            weights, slots = torch.ones(5, 2), torch.zeros(5, 2, dtype=torch.int64)
            experts.grouped_experts(x, product, product, weights, slots, torch.relu)
            for rows in (1, 70, 300):
                one = product.at(0)
                fp8_blocks.linear_fp8_fp8(torch.ones(rows, 256).bfloat16(), **one.tensors, **one.settings)


def steps() -> None:
    """The input of decode steps, of one row and of many."""
    for rows in (1, 128):
        numbers = torch.zeros(4, rows, dtype=torch.int64)
        lens, tables = torch.zeros(rows, dtype=torch.int32), torch.zeros(rows, 16, dtype=torch.int32)
        for drawn in (None, torch.zeros(1, dtype=torch.int64)):
            step.place_rows(numbers[0], numbers[0], numbers[0], drawn, lens, tables, numbers[1:])


CALLS = (draws, adapters, products, rounded_products, steps)
"""What engines on a CPU do not come to."""


FEW = ("odd sizes {}", "qwen3_moe {'quantization': 'int4'}", "draws", "adapters", "rounded_products")


def main() -> int:
    driver.set_active(Driver())
    JITFunction.run = compile_only
    available.why_not_device = backend.why_not_device = lambda device: None
    registry.OPS["embedding_gguf"].active = planes.embedding_gguf
    available.capability_of, attend._multiprocessors = (lambda device: 90), (lambda device: 132)
    torch.empty, torch.empty_like = zeros(torch.empty), zeros(torch.empty_like)
    tried = [(f"{name} {options}", partial(run, name, options)) for name, options in ENGINES]
    tried += [(each.__name__, each) for each in CALLS]
    if sys.argv[1:] == ["--few"]:
        tried = [(name, work) for name, work in tried if name in FEW]
    failed = 0
    for name, work in tried:
        before = set(launched)
        launches.clear()
        try:
            work()
        except Exception:  # whatever it is, it is what would have happened on a GPU
            failed += 1
            print(f"{name}: FAILED\n{traceback.format_exc(limit=-6)}", flush=True)
        more = ", ".join(sorted({launched[each] for each in launched.keys() - before}))
        print(f"{name}: compiled {more or 'nothing more'}", flush=True)
    print(f"{len(launched)} kernels compiled, {failed} of {len(tried)} failed; Triton {triton.__version__}")
    return 1 if failed or not launched else 0


if __name__ == "__main__":
    sys.exit(main())
