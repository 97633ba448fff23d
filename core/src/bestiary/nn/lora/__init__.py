"""Low-rank adapters (LoRA, arXiv 2106.09685) beside a finished model: slots, their rows, what fits where."""

from .attach import attach
from .model_slots import AdapterSlots, Prepared
from .prepare import Piece
from .rows import SlotRows
from .slots import Factors

__all__ = ["AdapterSlots", "Factors", "Piece", "Prepared", "SlotRows", "attach"]
