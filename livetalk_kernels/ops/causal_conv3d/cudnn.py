"""``causal_conv3d`` like ``library`` on a GPU, with cuDNN's fastest algorithm as timed here.

cuDNN otherwise chooses by its own heuristics. The first call at each size tries all algorithms,
which takes seconds; a VAE has a handful of sizes. ``auto`` never picks this: the winning algorithm
may differ between runs, and with it the last bits of the result.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from ...backends.reasons import device_reason, gpu_reason
from ...spec import Case
from .library import NO_BORDER, by_cudnn, convolve_video

DIFFERENTIABLE = True
searched = partial(by_cudnn, search=True)


def supports(case: Case) -> str | None:
    """Require an NVIDIA GPU, and a PyTorch with cuDNN."""
    reason = device_reason(case.device, "cuda") or gpu_reason(case)
    return reason or case.libraries.problem("cudnn")


def run(
    x: Tensor,
    history: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    packed: Tensor | None = None,
    zero_frames: int = 0,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = NO_BORDER,
) -> Tensor:
    """See the contract."""
    return convolve_video(
        x, history, weight, bias,
        zero_frames=zero_frames, stride=stride, padding=padding, by=searched,
    )  # fmt: skip
