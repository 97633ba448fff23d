"""The tiles of products whose weights are decoded in registers, by what the weights are and how many rows there are."""

from __future__ import annotations

from typing import NamedTuple

import torch

GROUP_M = 8


class Tile(NamedTuple):
    """Rows, outputs and inputs of a step, how it is run, in how many parts its inputs are (`tiles.multiplied`), and how
    many of them are decoded at once (`lanes`)."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    parts: int = 1
    unit: int = 0


def tile_for(rows: int, dtype: torch.dtype, exact: bool = False) -> Tile:
    """Few rows: narrow tiles, one for every multiprocessor, and deep ones, so that many bytes are under way. The tile
    for many, where it must be the same for all: what it computes for nobody costs few rows less than strips of 16 would
    cost many.

    fp32 has no tensor cores here, and needs registers for its products: its tiles are small.
    """
    rows = 1 << 30 if exact else rows
    if dtype is torch.float32:
        return Tile(16 if rows <= 16 else 32, 32, 32, 4, 2)
    return Tile(16, 32, 128, 4, 3) if rows <= 16 else Tile(64, 64, 64, 8, 3)


def tile_of(codes: str, scales: str, rows: int, dtype: torch.dtype, exact: bool = False) -> Tile:
    """As `tile_for`, of the layouts of `codes.strip`. Inputs of a GGUF type may be in bytes with others that are far
    away, all of which a strip has, so that a byte is read once.

    Few rows, 8 or 16, are multiplied as `lanes` has it: a lane takes 16 bytes of codes of each output that it has,
    which are 16 or 32 inputs, or 64 of Q6_K. Scales for single inputs take too many registers for that.
    """
    tile = tile_for(rows, dtype, exact)
    if dtype is torch.float32:
        return Tile(tile.block_m, 16, 128, 4, 2, 4) if codes.endswith("_K") else tile
    if tile.block_m > 16:
        return tile._replace(block_k=128) if scales == "blocks" or (codes == "int4" and scales != "any") else tile
    if scales == "any":
        return Tile(16, 16, 256, 4, 3, 4)
    if codes == "plain":
        return Tile(16, 32, 256, 4, 3, 4)
    unit = 16 if codes in _BYTES else _UNITS.get(codes, 32)
    stages = 3 if rows > 8 or codes == "Q6_K" else 4  # more do not fit the 99 KiB that many GPUs have
    width, depth = 16 if codes == "Q6_K" else 32, 16 * unit if unit <= 32 else 8 * unit
    return Tile(8 if rows <= 8 else 16, width, depth, 4, stages, 4, unit)


_UNITS = {"Q4_K": 64, "Q5_K": 64, "Q6_K": 128}
"""Lower and upper nibbles of the same bytes are inputs far from each other."""
_BYTES = frozenset({"int8", "uint8", "fp8", "e4m3", "Q8_0"})
