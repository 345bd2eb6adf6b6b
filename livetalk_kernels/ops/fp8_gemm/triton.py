"""``fp8_gemm`` in Triton: TMA and FP8 tensor cores, kernel in ``_triton.py``."""

from typing import Any

import torch
from torch import Tensor

from ...backends.triton_launch import Launch, interpreted, register, supports_tma
from ...precision import FP8_BLOCK
from ...spec import Case
from ..quantize import count_blocks
from . import empty_outputs

TMA_BYTES = 16  # rows and addresses must be multiples of this
BLOCK_M = 128  # rows per tile
SPARE = 1024  # bytes of shared memory for barriers and exchanges
GROUP = 16  # rows of tiles: 16 x 128 rows by 8 x 256 columns run concurrently
TILE_COLUMNS = (256, 128)  # per tile; the first is better if it fills the waves
STAGES = 3  # steps of K whose operands are in shared memory
PROCESSORS = {"meta": 132, "cpu": 4}  # an H200's; few in the interpreter, so that programs loop


def supports(case: Case) -> str | None:
    """Require what Triton's TMA kernels need, and shared memory for the larger tile."""
    return supports_tma(case, shared_memory(case.dtype))


def shared_memory(out_dtype: torch.dtype) -> int:
    """Bound a program's bytes: its operands in flight, a panel of results, and a little spare.

    Tests compare it with the compiled kernels; see the recorded baselines of ``inspect``.
    """
    operands = STAGES * (BLOCK_M + max(TILE_COLUMNS)) * FP8_BLOCK
    return operands + BLOCK_M * FP8_BLOCK * out_dtype.itemsize + SPARE


def gemm_arguments(
    a_MK: Tensor,
    b_NK: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias_N: Tensor | None,
    *,
    tma_out: bool,
) -> tuple[int, dict[str, Any]]:
    """Return the number of programs and the arguments, except outputs, of both FP8 linears.

    Neither M nor N is 0. Outputs without TMA need addresses and masks, which leave registers for
    one panel.
    """
    (M, K), N = a_MK.shape, b_NK.shape[0]
    blocked = scale_a.shape[-1] > 1
    if blocked:
        assert scale_a.shape[-1] == count_blocks(K, FP8_BLOCK), "scale_a's shape"
    processors = _processors(a_MK.device)
    block_n = tile_columns(M, N, processors) if tma_out else FP8_BLOCK
    arguments = {
        "a": descriptor(_tma_rows(a_MK), BLOCK_M),
        "b": descriptor(_tma_rows(b_NK), FP8_BLOCK),
        "scale_a": scale_a, "scale_b": scale_b, "bias": bias_N,
        "scale_row": scale_a.stride(0), "scale_step": scale_a.stride(1),
        "rows": M, "columns": N, "depth": K,
        "BLOCK_M": BLOCK_M, "BLOCK_N": block_n, "GROUP": GROUP, "PROGRAMS": processors,
        "BLOCKED": blocked, "BIASED": bias_N is not None, "INTERPRETED": interpreted(),
    }  # fmt: skip
    return min(processors, _tiles(M, N, block_n)), arguments


def tile_columns(rows: int, columns: int, processors: int) -> int:
    """Choose a tile's columns, 256 or 128: what reads least from L2, counted in full waves.

    By arithmetic, not measured: a step of 128 x 256 reads 48 KiB for 4 Mi products, one of
    128 x 128 reads 32 KiB for 2 Mi. At full rate (4096 products per clock) that is 48 and 64 bytes
    per clock and processor, more than L2 delivers, so tiles cost as 3 to 2 and not as 2 to 1.
    """
    waves = {n: -(-_tiles(rows, columns, n) // processors) for n in TILE_COLUMNS}
    return 256 if 3 * waves[256] <= 2 * waves[128] else 128


def _tiles(rows: int, columns: int, block_n: int) -> int:
    return -(-rows // BLOCK_M) * -(-columns // block_n)


def _processors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return PROCESSORS[device.type]


def descriptor(x: Tensor, block_rows: int) -> Any:
    """Create the TMA descriptor for tiles [block_rows, 128] of a matrix."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return TensorDescriptor.from_tensor(x, [block_rows, FP8_BLOCK])


def is_tma(x: Tensor) -> bool:
    """Return whether TMA can move tiles of a contiguous matrix."""
    row_bytes = x.shape[-1] * x.itemsize
    return row_bytes % TMA_BYTES == 0 and row_bytes > 0 and x.data_ptr() % TMA_BYTES == 0


def _tma_rows(x: Tensor) -> Tensor:
    """Return an FP8 matrix, copied with zero-padded rows if TMA cannot move it as it is."""
    if is_tma(x):
        return x
    width = max(1, -(-x.shape[-1] // TMA_BYTES)) * TMA_BYTES
    padded = x.view(torch.uint8).new_zeros((x.shape[0], width))
    padded[:, : x.shape[-1]] = x.view(torch.uint8)
    return padded.view(x.dtype)


def launches(
    outputs: tuple[Tensor, ...],
    a_MK: Tensor,
    b_NK: Tensor,
    scale_a: Tensor,
    scale_b: Tensor,
    bias_N: Tensor | None,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
) -> list[Launch]:
    """Return the launches that fill ``outputs``."""
    from ._triton import fp8_gemm_kernel

    (out,) = outputs
    if not out.numel():
        return []
    tma_out = is_tma(out)
    programs, arguments = gemm_arguments(a_MK, b_NK, scale_a, scale_b, bias_N, tma_out=tma_out)
    arguments |= {"out": descriptor(out, BLOCK_M) if tma_out else out, "TMA_OUT": tma_out}
    return [
        Launch(
            kernel=fp8_gemm_kernel, grid=(programs,), arguments=arguments, warps=8, stages=STAGES
        )
    ]


run = register("fp8_gemm", empty_outputs, launches)
