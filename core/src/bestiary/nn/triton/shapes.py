"""The tiles of products whose weights are decoded in registers, by what the weights are and how many rows there are."""

from __future__ import annotations

from typing import NamedTuple

import torch

GROUP_M = 8


class Tile(NamedTuple):
    """Rows, outputs and inputs of a step, how it is run, and in how many parts its inputs are (`tiles.multiplied`)."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    parts: int = 1


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
    """As `tile_for`, of the layouts of `codes.strip`: as many rows, and deeper, so that what a step costs is for many
    codes. Those of a GGUF type may be in bytes with others that are far away, all of which a strip has, so that a byte
    is read once. Scales for single inputs, and tables, take registers."""
    tile = tile_for(rows, dtype, exact)
    if dtype is torch.float32:
        return Tile(tile.block_m, 16, 128, 4, 2, 4) if codes.endswith("_K") else tile
    each = scales in ("any", "listed") or codes == "codebook"
    if tile.block_m > 16:
        return tile._replace(block_k=128) if scales == "blocks" or (codes == "int4" and not each) else tile
    if each:
        return Tile(16, 16, 256, 4, 3, 4)
    return Tile(16, 16, 512, 4, 3, 4) if codes == "Q6_K" else Tile(16, 32, 256, 4, 3, 4)
