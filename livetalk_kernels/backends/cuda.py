"""The compiled CUDA kernels: loads ``_C_cuda.so``, or says why it cannot.

``make cuda`` builds it wherever nvcc is installed; it loads only into a torch built for CUDA.
Its kernels are then ``torch.ops.livetalk.<op>_cuda``. Untested on a GPU.

It links its own CUDA runtime, so the one torch was built with does not matter, but the driver does.
A driver supports runtimes of its own and of older major versions. Within a major version it also
runs machine code of newer toolkits, but does not translate their portable code (PTX).

Source: NVIDIA's "CUDA Compatibility", minor version compatibility and its limits.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from . import operators
from .cpu import FOLDER, load_library
from .reasons import HOPPER, capability_reason, cuda_reason, device_reason, dtype_reason

if TYPE_CHECKING:
    from ..spec import Case

MEND = "run `make cuda` (needs nvcc)"
REBUILD = "run `make cuda` here again (needs nvcc)"
PACK_BYTES = 16
LANES, PACKS = 32, 4  # maximum per pixel in pixel_norm.cu
MIN_CAPABILITY = (8, 0)
MAX_CHANNELS: Mapping[torch.dtype, int] = MappingProxyType(
    {
        dtype: LANES * PACKS * PACK_BYTES // dtype.itemsize
        for dtype in (torch.float32, torch.bfloat16)
    }
)


@functools.cache
def missing() -> str | None:
    """Return None once the kernels are loaded, else why they cannot be."""
    library = FOLDER / "_C_cuda.so"
    if not library.is_file():
        return f"the CUDA kernels were not built; {MEND}"
    reason = cuda_reason() or load_library(library, REBUILD)
    if reason is None and not hasattr(torch.ops.livetalk, "cuda_versions"):
        return f"the CUDA kernels are older than this code; {REBUILD}"
    return reason or driver_reason(*versions())


def versions() -> tuple[int, int]:
    """Return the CUDA version that built the kernels, and the newest that the driver supports.

    Returns:
        Both as 1000 * major + 10 * minor; 0 without a driver.
    """
    toolkit, driver = torch.ops.livetalk.cuda_versions()
    return toolkit, driver


def driver_reason(toolkit: int, driver: int) -> str | None:
    """Return None if a driver supports a toolkit's runtime, else why it does not.

    Args:
        toolkit: As in ``versions``.
        driver: As in ``versions``.
    """
    if driver // 1000 >= toolkit // 1000:
        return None
    return (
        f"the CUDA kernels were built with CUDA {_version(toolkit)}, but the driver serves "
        f"{_version(driver)}; update the driver, or build with a CUDA {driver // 1000}.x toolkit "
        "(set CUDA_HOME to it, then `make cuda`)"
    )


def translation_reason(capability: tuple[int, int], toolkit: int, driver: int) -> str | None:
    """Return None if a GPU's machine code was built or can be translated, else why not.

    Args:
        capability: Compute capability of the GPU, 8.0 or newer.
        toolkit: As in ``versions``.
        driver: As in ``versions``, of the toolkit's major version or newer.
    """
    if capability[0] == MIN_CAPABILITY[0] or capability == HOPPER or driver >= toolkit:
        return None
    major, minor = capability
    return (
        f"on compute capability {major}.{minor} the driver has to translate the CUDA kernels; they "
        f"were built with CUDA {_version(toolkit)}, and it serves only {_version(driver)}; update "
        "the driver, or build with an older toolkit (set CUDA_HOME to it, then `make cuda`)"
    )


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def compiled(op: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Return an op's operator from this library; see `operators.compiled`."""
    missing()
    return operators.compiled(f"{op}_cuda", fake)


def supports_rows(case: "Case", letter: str) -> str | None:
    """Check what kernels on 16-byte packs need: a GPU, fp32 or bf16, rows of whole packs.

    Args:
        case: The problem.
        letter: Letter of the size that must consist of whole packs.
    """
    reason = device_reason(case.device, "cuda") or dtype_reason(case.dtype, MAX_CHANNELS)
    if reason is not None:
        return reason
    count = PACK_BYTES // case.dtype.itemsize
    if case.dims.get(letter, 0) % count:
        return f"needs {letter} in multiples of {count}, not {case.dims[letter]}"
    reason = case.libraries.problem("cuda kernels") or capability_reason(case, MIN_CAPABILITY)
    if reason is not None or case.gpu is not None:  # an absent GPU's driver is not known
        return reason
    return translation_reason(torch.cuda.get_device_capability(case.device), *versions())
