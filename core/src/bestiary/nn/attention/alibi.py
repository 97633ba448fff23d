"""ALiBi (arXiv 2108.12409): attention that fades with distance, at a rate of its own in each head."""

from __future__ import annotations

from bestiary.nn.parallel import divide, get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size


def get_alibi_slopes(total_num_heads: int) -> list[float]:
    """The slopes of this rank's heads, as `Attention` takes them.

    For n heads, n a power of two, they are 2^(-8/n), 2^(-16/n) … 2^(-8). For any other number they are those of the
    next smaller power of two, then every other one, from the first on, of the next larger.
    """
    power = 1 << (total_num_heads.bit_length() - 1)
    halves = [*range(2, 2 * power + 1, 2), *range(1, 2 * power, 2)]  # in units of half a step of the smaller power
    share = divide(total_num_heads, get_tensor_model_parallel_world_size(), "num_attention_heads")
    first = get_tensor_model_parallel_rank() * share
    return [2.0 ** (-4.0 * half / power) for half in halves[first : first + share]]
