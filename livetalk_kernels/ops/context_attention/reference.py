"""``context_attention`` in plain PyTorch."""

from torch import Tensor

from ...spec import Case
from .._attention import plain_attention

DIFFERENTIABLE = True


def supports(case: Case) -> str | None:
    """Accept every case."""
    return None


def run(
    q_BLHd: Tensor,
    k_image_BSHd: Tensor,
    v_image_BSHd: Tensor,
    k_text_BSHd: Tensor,
    v_text_BSHd: Tensor,
    *,
    text_repeats: int = 1,
) -> Tensor:
    """See the contract."""
    image, _ = plain_attention(q_BLHd, k_image_BSHd, v_image_BSHd)
    text, _ = plain_attention(q_BLHd, k_text_BSHd, v_text_BSHd, last_repeats=text_repeats)
    return image.add_(text).to(q_BLHd.dtype)
