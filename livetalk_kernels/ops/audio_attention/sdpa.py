"""``audio_attention`` with torch's fused attention: whole frames form the batch.

A frame that a shard contains only in part is a separate batch. Runs on CPU; on CUDA torch picks the
kernel itself.
"""

import torch
from torch import Tensor

from .._attention import sdpa_attention
from .._attention import sdpa_caution as caution
from .._attention import sdpa_supports as supports

DIFFERENTIABLE = True
__all__ = ["caution", "run", "supports"]


def run(
    q_BLHd: Tensor,
    k_BFSHd: Tensor,
    v_BFSHd: Tensor,
    *,
    tokens_per_frame: int,
    token_offset: int = 0,
) -> Tensor:
    """See the contract."""
    start, length, size = token_offset, q_BLHd.shape[1], tokens_per_frame
    assert start + length <= k_BFSHd.shape[1] * size, "tokens beyond the last audio frame"
    head = min(length, -start % size)  # tokens of a frame that began before the shard
    tail = (length - head) % size
    pieces: list[Tensor] = []
    frame = start // size
    for tokens in (head, length - head - tail, tail):
        if tokens == 0:
            continue
        frames = -(-tokens // size)
        at = sum(piece.shape[1] for piece in pieces)
        keys = slice(frame, frame + frames)
        pieces.append(_frames(q_BLHd[:, at : at + tokens], k_BFSHd[:, keys], v_BFSHd[:, keys]))
        frame += frames
    if not pieces:
        return q_BLHd.new_empty(q_BLHd.shape)
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _frames(q_BLHd: Tensor, k_BFSHd: Tensor, v_BFSHd: Tensor) -> Tensor:
    """Compute attention for queries that split evenly over the frames."""
    B, L, _, _ = q_BLHd.shape
    frames = k_BFSHd.shape[1]
    q = q_BLHd.unflatten(1, (frames, L // frames)).flatten(0, 1)
    out = sdpa_attention(q, k_BFSHd.flatten(0, 1), v_BFSHd.flatten(0, 1))
    return out.unflatten(0, (B, frames)).flatten(1, 2)
