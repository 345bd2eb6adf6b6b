"""Shared by the launches of the Triton attention kernels: block sizes, and sources of keys."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends.reasons import shared_memory_reason
from ..backends.triton_launch import interpreted, split_width, supports_dot
from ..spec import Case
from ._rows import power_of_two

LOG2_E = 1 / math.log(2)
MAX_WIDTH = 512
USUAL_WIDTH = 128  # channels per head of the model
SPARE = 1024  # bytes of shared memory for barriers and exchanges
MIN_BLOCK = 16  # smallest side of a matrix product
MAX_BOX = 256  # largest side of a TMA box


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """What a program processes at a time, for heads of one width.

    Attributes:
        rows: Queries.
        keys: Keys.
        main: Channels of the first block.
        tail: Remaining channels, 0 if none.
        warps: Warps per program.
        stages: Key blocks in flight.
    """

    rows: int
    keys: int
    main: int
    tail: int
    warps: int
    stages: int

    def shared_memory(self, dtype: torch.dtype) -> int:
        """Bound a program's bytes: its queries, keys and values in flight, and a little spare.

        Tests compare it with the compiled kernels; see the recorded baselines of ``inspect``.
        """
        rows = self.rows + 2 * self.stages * self.keys
        return rows * (self.main + self.tail) * dtype.itemsize + SPARE


def supports(case: Case, most_keys: int = 128) -> str | None:
    """Check what every Triton attention kernel needs.

    Args:
        case: The problem; heads of unknown width are assumed to have the model's.
        most_keys: Maximum number of keys that a program processes at a time.
    """
    width = case.dims.get("d", USUAL_WIDTH)
    if width > MAX_WIDTH:
        return f"it has heads of up to {MAX_WIDTH} channels, not {width}"
    reason = supports_dot(case)
    if reason is None and case.device.type == "cuda":
        blocks = choose_blocks(case.dtype, max(width, 1), compiled=True)
        blocks = dataclasses.replace(blocks, keys=min(blocks.keys, most_keys))
        return shared_memory_reason(case, blocks.shared_memory(case.dtype))
    return reason


def channel_blocks(width: int) -> tuple[int, int]:
    """Split a width like ``split_width``, into blocks that a matrix product accepts."""
    main, tail = split_width(width)
    return max(main, MIN_BLOCK), max(tail, MIN_BLOCK) if tail and main >= MIN_BLOCK else 0


def choose_blocks(dtype: torch.dtype, width: int, *, compiled: bool = False) -> Blocks:
    """Choose blocks for Hopper, judging by compiled code alone: nothing is measured yet.

    For 16 bits and 128 channels, two groups of four warps take 64 queries each, in lockstep: the
    compiled loop has five program-wide barriers per key block (three with Triton 3.6), and waits
    for all products before the softmax, during which the tensor cores idle. Of the blocks that fit,
    128 x 128 has the fewest other instructions per tensor-core instruction; the third stage fills
    the shared memory (229,432 of 232,448 bytes), and with two stages a block's loads would start
    only after the block before it is done. A multiprocessor holds one such program.
    """
    main, tail = channel_blocks(width)
    if interpreted() and not compiled:  # its time depends on the number of programs and steps
        rows, keys, warps, stages = 128, 128, 4, 1
    elif dtype == torch.float32:  # for comparison, not for speed: no tensor cores, and it spills
        rows, keys, warps, stages = 32, 32, 8, 1
    elif main + tail <= 128:
        rows, keys, warps, stages = 128, 128, 8, 3
    elif main + tail <= 256:
        rows, keys, warps, stages = 128, 64, 8, 2
    else:
        rows, keys, warps, stages = 64, 32, 8, 2
    return Blocks(rows=rows, keys=keys, main=main, tail=tail, warps=warps, stages=stages)


def key_blocks(keys: int, block: int, *, ragged: bool = False) -> dict[str, int]:
    """Cover the keys with equal blocks; return the constants of `attend`.

    Args:
        keys: Number of keys.
        block: Keys per block, a power of two; fewer keys get a smaller block.
        ragged: Whether the last block needs a mask even if it is full.
    """
    block = min(block, max(MIN_BLOCK, power_of_two(keys or 1)))
    ragged = ragged or keys % block > 0
    return {"KEYS": block, "BLOCKS": min(-(-keys // block), 2), "RAGGED": ragged}


def strides(name: str, x_BSHd: Tensor) -> dict[str, int]:
    """Return the arguments ``<name>_stride_<dimension>``."""
    assert x_BSHd.stride(-1) == 1 or x_BSHd.shape[-1] <= 1, f"{name}: strided channels"
    letters = "bsh" if x_BSHd.ndim == 4 else "bfsh"
    return {f"{name}_stride_{at}": x_BSHd.stride(dim) for dim, at in enumerate(letters)}


def key_arguments(
    k_BSHd: Tensor, v_BSHd: Tensor, blocks: Blocks, *, ragged: bool = False, suffix: str = ""
) -> dict[str, Any]:
    """Return a kernel's arguments for one set of keys and values, each name with a suffix.

    Uses TMA where possible: aligned to 16 bytes, and channels that one block covers. A single key
    block is read through pointers: TMA loads outside a loop are waited for at once, keys and then
    values, but plain loads only where they are used.
    """
    keys = k_BSHd.shape[1]
    constants = key_blocks(keys, blocks.keys, ragged=ragged)
    tma = (
        k_BSHd.shape[-1] == blocks.main <= MAX_BOX
        and constants["BLOCKS"] > 1
        and all(_aligned(x) for x in (k_BSHd, v_BSHd))
    )
    sources: dict[str, Any] = {"k": k_BSHd, "v": v_BSHd}
    if tma:
        from triton.tools.tensor_descriptor import TensorDescriptor

        box = [1, constants["KEYS"], 1, blocks.main]
        sources = {name: TensorDescriptor.from_tensor(x, box) for name, x in sources.items()}
    arguments = {
        **sources, "keys": keys, **constants, "TMA": tma,
        **strides("k", k_BSHd), **strides("v", v_BSHd),
    }  # fmt: skip
    return {name + suffix: value for name, value in arguments.items()}


def _aligned(x: Tensor) -> bool:
    return x.data_ptr() % 16 == 0 and all(
        stride > 0 and stride * x.itemsize % 16 == 0 for stride in x.stride()[:-1]
    )
