"""`python -m bestiary_cpu.bench`: what the products reach, beside what the machine gives in the same run.

Read bandwidth is that of summing a matrix beyond the caches with all threads; torch's fp32 GEMM stands for arithmetic.
Medians of repeated calls; weights are random, since zeros would be flattered by nothing but the powers that they save.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bestiary.api.ggml_types import GgmlType

from ._abi import ReadArgs
from ._library import library
from .matrix import FORMATS, Matrix, matmul_args, pack, prepare
from .memory import address, bytes_array
from .pool import Call, Pool

ROWS = (1, 2, 3, 4, 8, 16, 32, 512)
FEW = 4
"""Up to so many rows a product is measured by the weights that it reads, beyond by its arithmetic."""


def median_seconds(call: Callable[[], object], least: float) -> float:
    """The median time of a call, repeated for `least` seconds and five times at the least; the first is not counted."""
    call()
    times: list[float] = []
    while len(times) < 5 or sum(times) < least:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def random_matrix(pool: Pool, format: GgmlType, n_out: int, n_in: int) -> Matrix:
    """Packed random codes with scales of ordinary size: every half of a block's head is drawn from the normal ones."""
    row = pool.library.native.bst_row_size(format, n_in)
    blocks: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (n_out, row), np.uint8)
    blocks &= np.uint8(0xBF)  # no exponent of all ones anywhere, so neither infinities nor NaN
    return pack(pool, format, blocks, n_in)


def read_bandwidth(pool: Pool, seconds: float) -> float:
    """Bytes a second of reading 256 MiB."""
    data = bytes_array(256 << 20, pool.library)
    data[:] = 1
    sums = np.empty(pool.threads, np.float32)
    call = Call("bst_read", ReadArgs(address(data), data.nbytes // 4, address(sums)))
    return data.nbytes / median_seconds(lambda: pool.run([call]), seconds)


def torch_gemm(threads: int, n_out: int, n_in: int, seconds: float) -> float:
    """Multiply-adds × 2 a second of torch's fp32 product with 512 rows."""
    import torch

    torch.set_num_threads(threads)
    x, weight = torch.randn(512, n_in), torch.randn(n_out, n_in)
    return 2 * 512 * n_in * n_out / median_seconds(lambda: torch.nn.functional.linear(x, weight), seconds)


def products(pool: Pool, format: GgmlType, options: argparse.Namespace) -> dict[str, float]:
    """By the number of rows: GB/s of weights for few, GFLOP/s for many."""
    matrix = random_matrix(pool, format, options.out, options.inputs)
    found = {}
    for rows in options.rows:
        x = np.random.default_rng(1).standard_normal((rows, matrix.n_in)).astype(np.float32)
        out = np.empty((rows, matrix.n_out), np.float32)
        call = Call("bst_matmul", matmul_args(matrix, prepare(pool, format, x), out))
        taken = median_seconds(lambda call=call: pool.run([call]), options.seconds)  # type: ignore[misc]
        amount = matrix.data.nbytes if rows <= FEW else 2 * rows * matrix.n_in * matrix.n_out
        found[_title(rows)] = amount / taken / 1e9
    return found


def _title(rows: int) -> str:
    return f"{rows} {'GB/s' if rows <= FEW else 'GFLOP/s'}"


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with Pool(options.threads, library(options.isa)) as pool:
        bandwidth = read_bandwidth(pool, options.seconds) / 1e9
        gemm = torch_gemm(pool.threads, options.out, options.inputs, options.seconds) / 1e9
        formats = {name: products(pool, GgmlType[name], options) for name in options.formats}
        return {
            "library": str(pool.library), "threads": pool.threads, "shape": [options.out, options.inputs],
            "read GB/s": bandwidth, "torch fp32 gemm GFLOP/s": gemm, "formats": formats,
        }  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bestiary_cpu.bench", description=__doc__.splitlines()[0])
    parser.add_argument("formats", nargs="*", default=[each.name for each in FORMATS])
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="of activations")
    parser.add_argument("--out", type=int, default=8192, help="rows of the matrix")
    parser.add_argument("--inputs", type=int, default=4096, help="columns of the matrix")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--isa", choices=("scalar", "avx2", "avx512"))
    parser.add_argument("--seconds", type=float, default=0.5, help="for each number")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    found = measure(options)
    if options.json:
        json.dump(found, sys.stdout, indent=1)
        return
    print(f"{found['library']}, {found['threads']} threads, {options.out} × {options.inputs}")
    print(f"read {found['read GB/s']:.1f} GB/s; torch fp32 GEMM {found['torch fp32 gemm GFLOP/s']:.0f} GFLOP/s")
    print(f"{'':8}" + "".join(f"{_title(rows):>13}" for rows in options.rows))
    for name, row in found["formats"].items():
        print(f"{name:8}" + "".join(f"{number:13.1f}" for number in row.values()))


if __name__ == "__main__":
    main()
