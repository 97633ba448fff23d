"""The linear layer in front of a router."""

from __future__ import annotations

from bestiary.nn.linear import ReplicatedLinear


class GateLinear(ReplicatedLinear):
    """Router logits ``[tokens, experts]``, the same on every rank.

    Quantizing at load leaves it as it is: it is small, and an error in it sends tokens to other experts.
    """
