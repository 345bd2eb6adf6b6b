"""``fp8_gemm`` with PyTorch's ``scaled_mm``: cuBLAS on a Hopper, plain PyTorch on a CPU.

cuBLAS has two recipes: scales per row of a and of b, or per 1x128 block of both; in the latter b's
are repeated for every block, which changes no value. A bias with the dtype of the 16-bit result is
added by the kernel; any other one to a result in fp32, so that there is one rounding. Fast
accumulation, which keeps fewer bits, stays off.

On Ada and Blackwell torch's own kernel takes only scales per row, and its result is bf16: another
bias or dtype then costs a second rounding, and scales per block are left to bf16 products
(``bf16``).
"""

import torch
from torch import Tensor
from torch.nn import functional

from ...backends.reasons import ADA, HOPPER, capability_reason, dtype_reason
from ...errors import UserError
from ...precision import FP8_BLOCK
from ...spec import Case
from ..quantize import count_blocks
from . import bf16
from ._library import ALIGNMENT, DTYPES, may_have_blocks, padded, trivial

MIN_CUDA = "12.9"  # its cuBLAS has both recipes
BLOCK_ROWS = 8  # cuBLAS requires multiples of this for rows with blocks
OPERATOR = "aten::_scaled_mm_v2"


def supports(case: Case) -> str | None:
    """Require a GPU with FP8, a Hopper with CUDA 12.9 or newer; on a CPU scales per row only."""
    return reason_against(case, blocks=may_have_blocks(case))


def reason_against(case: Case, *, blocks: bool) -> str | None:
    """Return why ``scaled_mm`` cannot run a case, with block scales or without; None if it can."""
    if (reason := dtype_reason(case.dtype, DTYPES)) is not None:
        return reason
    if case.device.type == "cpu":
        if not torch._C._dispatch_has_kernel_for_dispatch_key(OPERATOR, "CPU"):
            return f"torch {torch.__version__} has no scaled_mm for CPUs; pip install -U torch"
        return "takes scales per row only on a CPU, not per 1x128 block" if blocks else None
    if case.device.type != "cuda":
        return f"runs on cuda and cpu, not on {case.device.type}"
    reason = capability_reason(case, ADA)
    if reason is None and case.capability == HOPPER:
        return case.libraries.too_old("cuda", MIN_CUDA)
    return reason


def kernels_on(device: torch.device) -> str:
    """Name the kernels that run on a device: ``cpu``, ``cublas``, or torch's own, ``rows``."""
    if device.type == "cpu":
        return "cpu"
    return "cublas" if torch.cuda.get_device_capability(device) == HOPPER else "rows"


def run(
    a_MK: Tensor,
    b_NK: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias_N: Tensor | None,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """See the contract."""
    (M, K), N = a_MK.shape, b_NK.shape[0]
    blocked, kernels = scale_a.shape[-1] > 1, kernels_on(a_MK.device)
    if blocked:
        assert scale_a.shape[-1] == count_blocks(K, FP8_BLOCK), "scale_a's shape"
        if kernels == "cpu":
            raise UserError(
                f"scaled_mm on a CPU takes one scale per row, not {K // FP8_BLOCK} "
                "blocks; choose --backend fp8_gemm=auto"
            )
        if kernels == "rows":
            return bf16.run(a_MK, b_NK, scale_a, scale_b, bias_N, out_dtype=out_dtype)
    if (out := trivial(a_MK, b_NK, bias_N, out_dtype)) is not None:
        return out
    rows = BLOCK_ROWS if blocked else 1
    result = torch.bfloat16 if kernels == "rows" else out_dtype
    fused = bias_N is not None and bias_N.dtype == result and result.itemsize == 2
    if kernels != "rows" and bias_N is not None and not fused:
        result = torch.float32
    scale_a, scale_b = padded(scale_a, rows, 1), padded(scale_b, ALIGNMENT, 1)
    if blocked:  # cuBLAS expects a block's scales of all rows to be contiguous
        recipe = functional.ScalingType.BlockWise1x128
        scale_b = scale_b.expand(-1, K // FP8_BLOCK)
        scale_a, scale_b = scale_a.T.contiguous().T, scale_b.T.contiguous().T
    else:
        recipe = functional.ScalingType.RowWise
        scale_a, scale_b = scale_a.contiguous(), scale_b.T
    out = functional.scaled_mm(
        padded(a_MK, rows, ALIGNMENT),
        padded(b_NK, ALIGNMENT, ALIGNMENT).T,
        scale_a,
        recipe,
        scale_b,
        recipe,
        bias=padded(bias_N, ALIGNMENT) if bias_N is not None and fused else None,
        output_dtype=result,
    )
    out = out[:M, :N]
    if bias_N is not None and not fused:
        out = out.float().add_(bias_N)
    return out.to(out_dtype).contiguous()
