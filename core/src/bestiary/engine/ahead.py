"""Planning a step before the one in flight has told its tokens, so that a device never waits for the host.

The step after a step of which every request draws a token is known before those tokens are: one more token of each
request that is not at its end, at the next position. It is only planned where nothing else could come of it: all
running requests are in the step, nobody waits who could be admitted, and of each request all but the token's value is
known (`is_plain`). A request that ends with the token it draws meanwhile, by a stop token or because it was aborted,
has a row in the next step all the same; what that row draws is ignored, and where it writes is its own last block, or
one that is handed to another request only in a later step, which a device computes later.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from .kv_cache import KVCacheManager
from .plan import ScheduledItem
from .sequence import Sequence, Status


def is_plain(sequence: Sequence) -> bool:
    """Whether a request's next draw depends on nothing but its logits, its seed and its position."""
    p = sequence.sampling
    reshaped = (
        p.logit_bias
        or p.bad_token_ids
        or p.allowed_token_ids is not None
        or p.repetition_penalty != 1.0
        or p.presence_penalty
        or p.frequency_penalty
        or p.structured_outputs is not None
    )
    early = sequence.total < sequence.min_total
    return not (reshaped or early or p.logprobs is not None or sequence.prompt_logprobs is not None or sequence.pooling)


def continued(
    items: SequenceOf[ScheduledItem], sequences: SequenceOf[Sequence], kv: KVCacheManager
) -> list[tuple[Sequence, ScheduledItem]] | None:
    """What comes after a step in flight: one token of every request that goes on; None where that is not known."""
    if kv.states is not None:
        return None
    found = []
    for item, sequence in zip(items, sequences, strict=True):
        if sequence.status is not Status.RUNNING:
            continue
        if not item.samples or not is_plain(sequence):
            return None
        end = item.start + item.count
        if end + 1 >= sequence.max_total:  # the token that is being drawn is its last
            continue
        if not kv.allocate(sequence, end + 1):
            return None
        found.append((sequence, ScheduledItem(sequence.request_id, end, 1, sequence.block_ids, True)))
    return found or None
