"""Ring attention: key and value blocks pass from rank to rank, and partial results are merged.

Every rank keeps its queries. While it attends to one block, the next is in flight to a second
buffer. Partial results are merged by their log-sum-exp, exactly up to rounding; with 16-bit inputs
the sum is kept in fp32.

Source: Liu et al. 2023, arXiv 2310.01889; online softmax, arXiv 1805.02867.
"""

from collections.abc import Sequence

from torch import Tensor

from ..ops import Ops
from ..precision import math_dtype
from .comm import Communicator

KIND = "ring"


def ring_attention(
    communicator: Communicator,
    ops: Ops,
    q_HLd: Tensor,
    k_HSd: Tensor,
    v_HSd: Tensor,
    lengths: Sequence[int],
) -> Tensor:
    """Compute attention of this rank's queries to the keys of all ranks.

    Args:
        communicator: The ranks, in block order.
        ops: The bound ops.
        q_HLd: Queries of this rank's block.
        k_HSd: Its keys, contiguous.
        v_HSd: Its values, contiguous.
        lengths: Number of keys in every rank's block; may differ, and be 0.

    Returns:
        [1, L, H, d] in q's dtype, contiguous, fresh.
    """
    own, size = communicator.rank, communicator.size
    assert k_HSd.shape[1] == lengths[own] and len(lengths) == size
    if size == 1:
        return ops.chunk_attention(*map(_token_major, (q_HLd, k_HSd, v_HSd)))[0]
    after, before = (own + 1) % size, (own - 1) % size
    wide, q_BLHd = math_dtype(q_HLd.dtype), _token_major(q_HLd)
    out_BLHd = lse_BHL = pending = None
    for hop in range(size):
        if hop + 1 < size:
            shape = k_HSd.shape[0], lengths[(own - hop - 1) % size], k_HSd.shape[2]
            k_next, v_next = k_HSd.new_empty(shape), v_HSd.new_empty(shape)
            pending = communicator.exchange(
                [(after, k_HSd), (after, v_HSd)], [(before, k_next), (before, v_next)], kind=KIND
            )
        part, part_lse = ops.chunk_attention(q_BLHd, _token_major(k_HSd), _token_major(v_HSd))
        part = part.to(wide)
        if out_BLHd is None:
            out_BLHd, lse_BHL = part, part_lse
        else:
            out_BLHd, lse_BHL = ops.merge_lse(out_BLHd, lse_BHL, part, part_lse)
        if hop + 1 < size:
            assert pending is not None
            pending.wait()
            k_HSd, v_HSd = k_next, v_next
    assert out_BLHd is not None
    return out_BLHd.to(q_HLd.dtype)


def _token_major(x_HLd: Tensor) -> Tensor:
    """View [H, L, d] as [1, L, H, d], the ops' layout, without a copy."""
    return x_HLd.transpose(0, 1)[None]
