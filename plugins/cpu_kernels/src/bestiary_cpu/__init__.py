"""Native CPU kernels for Bestiary: quantized and float products, bitwise independent of the batch and the threads."""

from __future__ import annotations

from ._library import Library, library

__all__ = ["Library", "library"]
__version__ = "0.1.0"
