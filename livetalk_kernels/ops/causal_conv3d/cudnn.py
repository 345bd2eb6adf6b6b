"""``causal_conv3d`` as ``library`` on a GPU, by the fastest of cuDNN's algorithms as timed here.

cuDNN otherwise chooses by rules of its own. The first call at each size tries all algorithms, which
takes seconds; a VAE has a handful of sizes. ``auto`` never picks this: which algorithm wins may
differ from run to run, and with it the last bits of the result. Untested on a GPU.
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
    """An NVIDIA GPU, and a PyTorch with cuDNN."""
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
