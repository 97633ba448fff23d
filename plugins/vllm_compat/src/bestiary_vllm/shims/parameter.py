"""Kinds of parameters by which vLLM's layers are laid out: ours are plain ones, so none of these is ever met."""

from __future__ import annotations

from torch import nn


class BasevLLMParameter(nn.Parameter):
    """What others derive from."""


class ModelWeightParameter(BasevLLMParameter):
    """A weight."""


class PerTensorScaleParameter(BasevLLMParameter):
    """A scale for a whole tensor."""


class ChannelQuantScaleParameter(BasevLLMParameter):
    """A scale for each row."""


class GroupQuantScaleParameter(BasevLLMParameter):
    """A scale for each group of a row."""


class BlockQuantScaleParameter(BasevLLMParameter):
    """A scale for each block."""


class PackedvLLMParameter(BasevLLMParameter):
    """Several weights in one number."""
