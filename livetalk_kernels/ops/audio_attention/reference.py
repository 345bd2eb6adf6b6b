"""``audio_attention`` in plain PyTorch."""

from torch import Tensor

from ...spec import Case
from .._attention import plain_attention

DIFFERENTIABLE = True


def supports(case: Case) -> str | None:
    """Accept every case."""
    return None


def run(
    q_BLHd: Tensor,
    k_BFSHd: Tensor,
    v_BFSHd: Tensor,
    *,
    tokens_per_frame: int,
    token_offset: int = 0,
) -> Tensor:
    """See the contract."""
    end = token_offset + q_BLHd.shape[1]
    assert end <= k_BFSHd.shape[1] * tokens_per_frame, "tokens beyond the last audio frame"
    out_BLHd = q_BLHd.new_empty(q_BLHd.shape)
    position = token_offset
    while position < end:
        frame = position // tokens_per_frame
        stop = min(end, (frame + 1) * tokens_per_frame)
        tokens = slice(position - token_offset, stop - token_offset)
        out, _ = plain_attention(q_BLHd[:, tokens], k_BFSHd[:, frame], v_BFSHd[:, frame])
        out_BLHd[:, tokens] = out
        position = stop
    return out_BLHd
