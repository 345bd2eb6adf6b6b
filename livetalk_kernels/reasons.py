"""Why a backend cannot run a case, in words that several backends share."""

from collections.abc import Collection

import torch

from .precision import dtype_name

HOPPER = (9, 0)
"""Compute capability of H100, H200, H800 and H20."""


def device_reason(device: torch.device, wanted: str) -> str | None:
    """None on a device of that type, else why not."""
    return None if device.type == wanted else f"runs on {wanted}, not on {device.type}"


def dtype_reason(dtype: torch.dtype, wanted: Collection[torch.dtype]) -> str | None:
    """None for one of those dtypes, else which it needs."""
    if dtype in wanted:
        return None
    *others, last = map(dtype_name, wanted)
    return f"needs {', '.join(others)}{' or ' if others else ''}{last}, not {dtype_name(dtype)}"


def cuda_reason() -> str | None:
    """None where torch sees an NVIDIA GPU, else why it does not."""
    if torch.cuda.is_available():
        return None
    return "there is no CUDA device, or this torch is not built for CUDA"


def capability_reason(device: torch.device, least: tuple[int, int]) -> str | None:
    """None for a GPU that is as new as that, else what it needs. There must be a GPU."""
    capability = torch.cuda.get_device_capability(device)
    if capability >= least:
        return None
    return f"needs compute capability {_dotted(least)} or newer, not {_dotted(capability)}"


def hopper_reason(capability: tuple[int, int]) -> str | None:
    """None for a Hopper, whose own code neither older nor newer GPUs run; else why not."""
    if capability == HOPPER:
        return None
    return f"needs a Hopper, compute capability {_dotted(HOPPER)}, not {_dotted(capability)}"


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"
