"""``context_attention`` with torch's fused attention, once for the image and once for the text.

Runs on CPU; on CUDA torch picks the kernel itself. In a
16-bit dtype each of the two results is rounded before they are summed.
"""

from torch import Tensor

from ...spec import Case
from .._attention import sdpa_attention
from .._attention import sdpa_caution as caution
from .._attention import sdpa_supports as supports

DIFFERENTIABLE = True
__all__ = ["caution", "run", "supports", "workspace"]


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
    image = sdpa_attention(q_BLHd, k_image_BSHd, v_image_BSHd)
    text = sdpa_attention(q_BLHd, k_text_BSHd, v_text_BSHd, last_repeats=text_repeats)
    # Autograd has saved the image's part; without autograd, spare a third tensor of this size.
    return image + text if image.requires_grad else image.add_(text)


def workspace(case: Case) -> int:
    """Count the text's part, while it is added to the image's."""
    B, L, H, d = (case.dims[letter] for letter in "BLHd")
    return B * L * H * d * case.dtype.itemsize
