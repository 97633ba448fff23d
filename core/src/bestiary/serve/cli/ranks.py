"""Commands on another rank than the first: they take part, and say nothing of their own."""

from __future__ import annotations

import os

from bestiary.engine.arguments import EngineArgs

from .output import say


def only_follows(args: EngineArgs) -> bool:
    """Whether requests come in elsewhere: on another machine, or in another process that torchrun started."""
    divided = args.tensor_parallel_size * args.pipeline_parallel_size * args.data_parallel_size > 1
    return args.node_rank > 0 or (divided and "MASTER_ADDR" in os.environ and int(os.environ.get("RANK", "0")) > 0)


def follow(args: EngineArgs) -> None:
    """Take part until the first rank closes the engine."""
    from bestiary.serve.llm import LLM

    with LLM(**{**vars(args), "skip_tokenizer_init": True}) as llm:
        if args.node_rank > 0 and args.progress:
            say(f"machine {args.node_rank} of {args.nnodes} takes part; requests are answered by machine 0")
        llm.follow()
