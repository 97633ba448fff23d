"""How experts are divided among ranks, as far as files that load experts themselves ask."""

from __future__ import annotations

from bestiary.nn import get_tensor_model_parallel_rank


class FusedMoEParallelConfig:
    """A name for what is asked of it; core decides how experts are divided."""

    @staticmethod
    def flatten_tp_across_dp_and_pcp(
        tp_size: int, dp_size: int, dp_rank: int, pcp_size: int, pcp_rank: int
    ) -> tuple[int, int]:
        """Among how many ranks each expert is divided, and which of them this is: those of tensor parallelism. Copies
        of a model share nothing here, and the context of a sequence is not divided."""
        return tp_size, get_tensor_model_parallel_rank()
