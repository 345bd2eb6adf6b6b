"""The compiled CPU kernels: loads ``_C.so``, or says why it cannot.

The library contains no Python, so it is loaded as torch operators; its kernels are then
``torch.ops.livetalk.<op>_cpu``.
"""

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..cpuinfo import cpu_vendor
from . import operators
from .reasons import device_reason, dtype_reason

if TYPE_CHECKING:
    from ..spec import Case

FOLDER = Path(__file__).resolve().parent.parent
MEND = "install a C++ compiler (g++), then install livetalk again (`make install`)"
ISAS = ("scalar", "avx2", "avx512", "avx512_bf16", "amx")
"""Instruction sets with their own kernels; each includes all those before it."""
BF16_ISAS = ("avx512_bf16", "amx")
"""Those with bf16 multiplication."""
FP32_ISA = "avx512"
"""What fp32 uses of those."""
DTYPES = (torch.float32, torch.bfloat16)


def missing() -> str | None:
    """Return None once the kernels are loaded, else why they cannot be."""
    return load(FOLDER)


@functools.cache
def load(folder: Path) -> str | None:
    """Load the kernels in a folder, once; return None, or why they cannot be loaded."""
    library = folder / "_C.so"
    if not library.is_file():
        note = folder / "_C.reason"
        if note.is_file():
            return f"the compiled kernels were not built: {note.read_text('utf-8').strip()}"
        return f"the compiled kernels were not built; {MEND}"
    return load_library(library, MEND)


def load_library(library: Path, mend: str) -> str | None:
    """Load torch operators; return None, or the dynamic linker's reason for refusal and the fix.

    Args:
        library: File with operators.
        mend: Command that rebuilds it here, against this torch.
    """
    try:
        torch.ops.load_library(library)
    except OSError as error:  # torch's own message only says that loading failed
        cause = str(error.__cause__ or error).partition("\n")[0].removeprefix(f"{library}: ")
        if "undefined symbol" in cause:
            return (
                f"{library.name} was built for another torch than this {torch.__version__} "
                f"({cause}); {mend}"
            )
        return f"{library.name} does not load: {cause}; {mend}"
    return None


def supports(case: "Case") -> str | None:
    """Check what every ``cpu`` backend needs: a CPU, fp32 or bf16, and the compiled kernels."""
    reason = device_reason(case.device, "cpu") or dtype_reason(case.dtype, DTYPES) or missing()
    if reason is None and not hasattr(torch.ops.livetalk, f"{case.op}_cpu"):
        return "the compiled kernels are older than this code; build them again (`make build`)"
    return reason


def compiled(op: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Return an op's operator from this library; see `operators.compiled`."""
    missing()
    return operators.compiled(f"{op}_cpu", fake)


def isa() -> str:
    """Return the instruction set that the kernels use, one of `ISAS`."""
    assert missing() is None
    return str(torch.ops.livetalk.isa())


def idle_isas() -> dict[str, str]:
    """Map the instruction sets that this CPU cannot run to what it lacks, lowest set first."""
    assert missing() is None
    lacks = {name: str(torch.ops.livetalk.isa_lacks(name)) for name in ISAS}
    return {name: lack for name, lack in lacks.items() if lack}


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which tensors of ``dtype`` should be multiplied on ``device``.

    fp32 for bf16 if the instruction set in use has no bf16 multiplication, which PyTorch would
    emulate; else the dtype itself. PyTorch decides if the kernels were not built, and on
    processors other than x86-64.
    """
    if device.type != "cpu" or dtype != torch.bfloat16 or platform.machine() != "x86_64":
        return dtype
    return dtype if missing() is not None or isa() in BF16_ISAS else torch.float32


def prefers_onednn() -> bool:
    """Return whether oneDNN multiplies fp32 matrices faster than MKL, which PyTorch uses.

    On other makers' processors MKL does not use AVX-512, and has half of oneDNN's rate on a Zen 5
    (profiles/chunk_epyc2c_202611.md). On Intel's the two were not compared.
    """
    if not _onednn_is_faster() or missing() is not None:
        return False
    return ISAS.index(isa()) >= ISAS.index(FP32_ISA)


@functools.cache
def _onednn_is_faster() -> bool:
    return cpu_vendor() != "GenuineIntel" and hasattr(torch.ops.mkldnn, "_linear_pointwise")
