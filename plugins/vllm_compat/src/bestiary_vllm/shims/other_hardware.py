"""What asks for kernels of hardware that is not supported here: the answer is always no."""

from __future__ import annotations

from typing import Any


class _Off:
    """Every question that it is asked is answered with False."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("is_"):
            return lambda *args, **kwargs: False
        raise AttributeError(f"there are no AMD kernels here: {name}", name=name)


rocm_aiter_ops = _Off()


def never(*args: Any, **kwargs: Any) -> bool:
    """Whether kernels that are not used here are used."""
    return False
