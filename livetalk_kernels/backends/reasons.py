"""Reasons why a backend cannot run a case, shared by several backends."""

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch

from ..precision import dtype_name

if TYPE_CHECKING:
    from ..spec import Case

TORCH = "install a torch for CUDA"
ADA, HOPPER = (8, 9), (9, 0)
"""Compute capabilities: of L40S and RTX 4090, the first with FP8; of H100, H200, H800 and H20."""


def device_reason(device: torch.device, wanted: str) -> str | None:
    """Return None on a device of that type, else why it cannot run."""
    return None if device.type == wanted else f"runs on {wanted}, not on {device.type}"


def dtype_reason(dtype: torch.dtype, wanted: Collection[torch.dtype]) -> str | None:
    """Return None for one of those dtypes, else which are needed."""
    if dtype in wanted:
        return None
    *others, last = map(dtype_name, wanted)
    return f"needs {', '.join(others)}{' or ' if others else ''}{last}, not {dtype_name(dtype)}"


def cuda_reason() -> str | None:
    """Return None if torch sees an NVIDIA GPU, else why it does not."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"this torch is not built for CUDA; {TORCH}"
    return "there is no CUDA device"


def gpu_reason(case: "Case") -> str | None:
    """Return None if there is an NVIDIA GPU, or one is assumed; else why there is none."""
    return None if case.gpu is not None else cuda_reason()


def capability_reason(case: "Case", least: tuple[int, int]) -> str | None:
    """Return None for a GPU of at least that compute capability, else what is needed."""
    capability = case.capability
    if capability is None:
        return gpu_reason(case) or device_reason(case.device, "cuda")
    if capability >= least:
        return None
    return f"needs compute capability {_dotted(least)} or newer, not {_dotted(capability)}"


def hopper_reason(capability: tuple[int, int] | None) -> str | None:
    """Return None for a Hopper, whose code neither older nor newer GPUs run, and for no GPU."""
    if capability is None or capability == HOPPER:
        return None
    return f"needs a Hopper, compute capability {_dotted(HOPPER)}, not {_dotted(capability)}"


def shared_memory_reason(case: "Case", needed: int) -> str | None:
    """Return None if a GPU's blocks can have that much shared memory, else how much they can.

    Args:
        case: A case on a GPU.
        needed: Bytes per block.
    """
    if case.shared_memory >= needed:
        return None
    has = case.shared_memory >> 10
    return f"needs {-(-needed >> 10)} KiB of shared memory a block, and the GPU has {has}"


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
