"""Planning a step before the one in flight has told its tokens, so that a device never waits for the host.

The step after a step of which every request draws a token is known before those tokens are: one more token of each
request that is not at its end, at the next position. It is only planned where nothing else could come of it: all
running requests are in the step, and nobody waits who could be admitted. A request that ends with the token it draws
meanwhile, by a stop token or because it was aborted, has a row in the next step all the same; what that row draws is
ignored, and where it writes is its own last block, or one that is handed to another request only in a later step, which
a device computes later. Likewise one that gets no token, since its grammar is not ready. States are written to rows
that no step in flight reads.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from .kv_cache import KVCacheManager
from .plan import ScheduledItem
from .sequence import Sequence, Status


def continued(
    parts: SequenceOf[tuple[Sequence, ScheduledItem]], kv: KVCacheManager, forms: bool = True
) -> list[tuple[Sequence, ScheduledItem]] | None:
    """What comes after a step in flight: one token of every request that goes on; None where that is not known.

    Args:
        forms: whether whoever computes steps knows what forms allow.
    """
    found = []
    for sequence, item in parts:
        if sequence.status is not Status.RUNNING:
            continue
        if not item.samples or sequence.prompt_logprobs is not None or sequence.pooling is not None:
            return None
        if sequence.sampling.structured_outputs is not None and not forms:
            return None
        end = item.start + item.count
        if end + 1 >= sequence.max_total:  # the token that is being drawn is its last
            continue
        if not kv.allocate(sequence, end + 1):
            return None
        found.append((sequence, ScheduledItem(sequence.request_id, end, 1, sequence.block_ids, True)))
    if not found or kv.states is None:
        return found or None
    rows = kv.states.schedule_ahead([sequence for sequence, _ in found])
    if rows is None:
        return None
    with_rows = zip(found, rows, strict=True)
    return [(each, item._replace(state_read=read, state_write=write)) for (each, item), (read, write) in with_rows]
