"""What kernels come to on shapes of an 8B model, counted where there is no GPU (`emulated.py`).

    python tests/triton/counted.py [WORD ...] [--json] [--lines]

Of calls whose names have one of the words. For each kernel: how often it is launched; the instructions of a thread for
each byte that is read; which part of the sectors of 32 bytes that a warp touches it asks for, reading and writing (more
than all where lanes ask for the same); passes through shared memory for each that there must be; instructions of tensor
cores. With --lines also the instructions that touch sectors or pass shared memory more often than need be. An H100 has
time for some 10 instructions a byte while it reads (docs/kernels.md).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import emulated
import torch

from bestiary.nn.attention.backend import AttentionSpec
from bestiary.nn.attention.metadata import AttentionMetadata
from bestiary.nn.ops.heads import QKNorm

HIDDEN, HEADS, KEYS, HEAD, VOCABULARY = 4096, 32, 8, 128, 128_256
SPEC = AttentionSpec(num_heads=HEADS, num_kv_heads=KEYS, head_size=HEAD, scale=HEAD**-0.5)
BF16 = torch.bfloat16


def some(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def rows() -> Iterator[tuple[str, Callable[[], object]]]:
    """What works on rows of hidden states."""
    from bestiary.nn.triton import activation, angles, norm, rotary

    for count in (1, 64):
        x, weight = some(count, HIDDEN), some(HIDDEN)
        yield f"norm of {count}", lambda x=x, w=weight: norm.fused_add_rms_norm(x, x.clone(), w, 1e-5)
        yield f"silu of {count}", lambda c=count: activation.silu_and_mul(some(c, 2 * 14_336))
        at, table = torch.arange(count), some(4096, HEAD, dtype=torch.float32)
        yield f"angles of {count}", lambda t=table, at=at: angles.rotary_angles(t, at, True, BF16)
        turned = some(count, (HEADS + 2 * KEYS) * HEAD), some(count, 1, HEAD), some(64, 16, 2, KEYS, HEAD)
        norms = QKNorm(some(HEAD), some(HEAD), 1e-6)
        for name, given in (("rotation", None), ("rotation with norms", norms)):
            yield f"{name} of {count}", lambda c=count, n=given, t=turned, at=at: _rotate(rotary, c, n, t, at)


def _rotate(rotary: Any, count: int, norms: QKNorm | None, made: tuple[torch.Tensor, ...], at: torch.Tensor) -> None:
    qkv, angle, cache = made
    query, key, value = (
        part.view(count, -1, HEAD) for part in qkv.split([HEADS * HEAD, KEYS * HEAD, KEYS * HEAD], dim=1)
    )  # fmt: skip
    rotary.qk_norm_rope_cache(query, key, value, cache, at, angle, angle, True, norms, 1.0, 1.0)


def attention() -> Iterator[tuple[str, Callable[[], object]]]:
    from bestiary.nn.attention.triton import TritonBackend

    for dtype in (BF16, torch.float8_e4m3fn):
        for name, sequences in (("decode", [(1000, 1)] * 4), ("prompt", [(0, 512)]), ("chunk", [(900, 100)])):
            yield f"{name} over {dtype}", lambda s=sequences, d=dtype: _attend(TritonBackend(), s, d)


def _attend(backend: Any, sequences: list[tuple[int, int]], dtype: torch.dtype) -> None:
    lengths, counts = [sum(each) for each in sequences], tuple(new for _, new in sequences)
    width, tokens = -(-max(lengths) // 16), sum(counts)
    blocks = torch.randperm(width * len(sequences)).view(-1, width)
    cache = some(blocks.numel(), 16, 2, KEYS, HEAD).to(dtype)
    metadata = AttentionMetadata(
        query_start=torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32),
        seq_lens=torch.tensor(lengths, dtype=torch.int32), block_tables=blocks.int(),
        slot_mapping=torch.arange(tokens), query_lens_host=counts, seq_lens_host=tuple(lengths),
        max_query_len=max(counts), max_seq_len=max(lengths), num_decodes=sum(each == 1 for each in counts),
        block_size=16,
    )  # fmt: skip
    query, key = some(tokens, HEADS, HEAD), some(tokens, KEYS, HEAD)
    backend.forward(query, key, key, cache, metadata, replace(SPEC, cache_dtype=dtype), None)


def products() -> Iterator[tuple[str, Callable[[], object]]]:
    from bestiary.api.ggml_types import GgmlType
    from bestiary.nn.ops.gguf import BlockRows
    from bestiary.nn.triton import dequant, grouped, int8, linear, planes, vector
    from bestiary.nn.triton.gguf_blocks import FORMATS

    width = 512
    yield "one row", lambda: vector.linear(some(1, HIDDEN), some(width, HIDDEN))
    codes, halves = torch.zeros(width, HIDDEN, dtype=torch.int8), torch.zeros(width, HIDDEN // 2, dtype=torch.uint8)
    for count in (1, 64):
        x, scale, groups = some(count, HIDDEN), torch.ones(width, 1), torch.ones(width, HIDDEN // 128)
        yield f"exact of {count}", lambda x=x: linear.linear(x, some(width, HIDDEN))
        yield f"int8 of {count}", lambda x=x, s=scale: grouped.linear_int8(x, codes, s[:, 0])
        yield f"int8 by int8 of {count}", lambda x=x, s=scale: int8.linear_int8_int8(x, codes, s[:, 0], symmetric=True)
        yield f"fp8 of {count}", lambda x=x, s=scale: grouped.linear_fp8(x, codes.view(torch.float8_e4m3fn), s, 128)
        yield f"int4 of {count}", lambda x=x, s=groups: grouped.linear_int4(x, halves, s, s.byte(), 128)
        for kind in sorted(FORMATS):
            size = HIDDEN // kind.block_size * kind.type_size
            run = [BlockRows(GgmlType(kind), 0, width, size)]
            blocks = torch.zeros(width, size, dtype=torch.uint8)
            packed = planes.pack_gguf(blocks, run)
            weight = blocks if packed is None else packed
            yield f"{kind.name} of {count}", lambda x=x, w=weight, r=run: dequant.linear_gguf(x, w, r)


def experts() -> Iterator[tuple[str, Callable[[], object]]]:
    """16 of Qwen3-30B-A3B's."""
    from bestiary.nn.ops.activation import silu_and_mul
    from bestiary.nn.triton import experts as coded
    from bestiary.nn.triton import moe, routing

    for count in (1, 64):
        x, logits = some(count, 2048), some(count, 16)
        yield f"routing of {count}", lambda g=logits: routing.topk_routing(g, 8, True)
        weights, ids = torch.full((count, 8), 0.125), torch.stack([torch.randperm(16)[:8] for _ in range(count)])
        yield f"experts of {count}", lambda x=x, w=weights, i=ids: moe.fused_experts(
            x, some(16, 2 * 768, 2048), some(16, 2048, 768), w, i, "silu"
        )  # fmt: skip
        for name in ("int8", "fp8", "int4", "Q4_0", "Q8_0", "Q4_K", "Q6_K"):
            first, second = _stacked(name, 2 * 768, 2048), _stacked(name, 2048, 768)
            yield f"{name} experts of {count}", lambda x=x, a=first, b=second, w=weights, i=ids: coded.grouped_experts(
                x, a, b, w, i, silu_and_mul
            )  # fmt: skip


def _stacked(name: str, width: int, depth: int) -> Any:
    from bestiary.api.ggml_types import GgmlType
    from bestiary.nn.ops import gguf, quant
    from bestiary.nn.ops.gguf import BlockRows
    from bestiary.nn.ops.product import Product

    ones, codes = torch.ones(16, width, depth // 128), torch.zeros(16, width, depth, dtype=torch.int8)
    if name == "int8":
        return Product(quant.linear_int8, {"weight": codes, "scale": ones[:, :, 0].contiguous()})
    if name == "fp8":
        tensors = {"weight": codes.view(torch.float8_e4m3fn), "scale": ones}
        return Product(quant.linear_fp8, tensors, {"group_size": 128})
    if name == "int4":
        halves = torch.zeros(16, width, depth // 2, dtype=torch.uint8)
        return Product(quant.linear_int4, {"weight": halves, "scale": ones, "zero": ones.byte()}, {"group_size": 128})
    kind = GgmlType[name]
    size = depth // kind.block_size * kind.type_size
    run = BlockRows(kind, 0, width, size)
    return Product(gguf.linear_gguf, {"weight": torch.zeros(16, width, size, dtype=torch.uint8)}, {"runs": [run]})


def tokens() -> Iterator[tuple[str, Callable[[], object]]]:
    from bestiary.nn.triton import draws, sampling

    logits, whole, share = some(4, VOCABULARY), torch.arange(4), torch.full((4,), 0.9)
    yield "likeliest", lambda: sampling.best_tokens(logits)
    yield "drawn", lambda: sampling.draw_from_part(logits, whole, whole, share, 0)
    yield "drawn by top-p", lambda: draws.draw_tokens(
        logits, whole, whole, share, whole.int() * 0, share, share * 0
    )  # fmt: skip


def main() -> None:
    from bestiary.nn.ops import gguf
    from bestiary.nn.triton import planes

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("word", nargs="*", help="of the names of calls; all unless given")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--lines", action="store_true", help="name the instructions that waste most")
    args = parser.parse_args()
    emulated.start_program()
    emulated.counting = True
    gguf.embedding_gguf.active = planes.embedding_gguf  # as on a GPU, where weights lie in planes
    for part in (rows, attention, products, experts, tokens):
        for name, call in part():
            if args.word and not any(word in name for word in args.word):
                continue
            emulated.counted.clear()
            emulated.each_counted.clear()
            call()
            for kernel, found in emulated.counted.items():
                print(json.dumps({"call": name, "kernel": kernel, **found}) if args.json else line(name, kernel, found))
                for wasted in wasteful(kernel) if args.lines else ():
                    print(f"    {wasted}")


def wasteful(kernel: str) -> Iterator[str]:
    """Where sectors are touched of which little is asked for, and where lanes meet in banks of shared memory."""
    for of, least in (("sectors_read", "read"), ("sectors_written", "written"), ("shared", "shared_least")):
        sums: Counter[str] = Counter()
        wanted: Counter[str] = Counter()
        for (text, where), found in emulated.each_counted[kernel].items():
            known = f"{text.removeprefix('@').split('[')[0].split('{')[0].split('%')[0].strip() or text[:60]}  {where}"
            sums[known] += found[of]
            wanted[known] += found[least] if of == "shared" else -(-found[least] // 32)
        for known, _ in (sums - wanted).most_common(4):
            yield f"{of}: {sums[known]} for {wanted[known]}: {known}"


def line(name: str, kernel: str, found: dict[str, int]) -> str:
    def share(of: str) -> str:
        return f"{found[of] / 32 / found['sectors_' + of]:5.0%}" if found["sectors_" + of] else ""

    each = 32 * found["instructions"] / (found["read"] or 1)
    passes = found["shared"] / (found["shared_least"] or 1)
    return (
        f"{name:32} {kernel:16} {found['launches']:2} x {each:7.2f} a byte, read {found['read']:10} {share('read'):5}, "
        f"written {found['written']:9} {share('written'):5}, shared {passes:5.2f}, products {found['products']:8}"
    )


if __name__ == "__main__":
    main()
