"""Libraries that backends depend on: installed versions, and why something cannot be used.

Backends ask through their case (`Case.libraries`), so that answers can be hypothetical: about a
library that is not installed, or a GPU that is absent. No global state is switched for that.
"""

import importlib
import importlib.util
import inspect
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

import torch.nn.attention

from ..machine import version
from .reasons import TORCH

Found: TypeAlias = tuple[str, str]
"""Version, empty if unusable; and why it is unusable, else empty."""


@dataclass(frozen=True, kw_only=True)
class Libraries:
    """The installed libraries, overridden by assumptions.

    Attributes:
        supposed: Name -> assumed version; empty for "not installed".
    """

    supposed: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> Found:
        """Return the version of a library in `LIBRARIES`, or why it cannot be used."""
        library = LIBRARIES[name]
        if name not in self.supposed:
            return library.find()
        found = self.supposed[name]
        return found, "" if found else f"needs {name}; {library.install}"

    def flash_implementation(self) -> str | None:
        """Return what replaced torch's flash attention in this process; None if nothing did."""
        return torch.nn.attention.current_flash_attention_impl()

    def problem(self, name: str) -> str | None:
        """Return None if a library can be used, else why not and the fix."""
        return self.find(name)[1] or None

    def too_old(self, name: str, least: str) -> str | None:
        """Return None for a library of at least that version, else what is needed."""
        found, problem = self.find(name)
        if problem or release(found) >= release(least):
            return problem or None
        return f"needs {name} {least} or newer, not {found}; {LIBRARIES[name].install}"

    def supposing(self, found: Mapping[str, str]) -> "Libraries":
        """Return a copy with further assumptions."""
        assert found.keys() <= LIBRARIES.keys(), found
        return Libraries(supposed={**self.supposed, **found})


@dataclass(frozen=True, kw_only=True)
class Library:
    """How to query one library, and how to install it.

    Attributes:
        find: Returns its version, or why it cannot be used.
        install: Command that installs it.
    """

    find: Callable[[], Found]
    install: str


def release(text: str) -> tuple[int, ...]:
    """Parse the numbers of a version: ``9.19.0+cu130`` -> (9, 19, 0)."""
    numbers = []
    for part in text.partition("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _module(name: str, module: str, distribution: str, install: str) -> Found:
    """Query a Python package by importing it, to see whether it works."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a library built for another torch can fail in any way
        lines = str(error).splitlines() or [type(error).__name__]
        return "", f"{name} cannot be imported ({lines[0]}); {install}"
    return version(distribution) or "unknown", ""


def _triton() -> Found:
    """Query Triton without importing it."""
    if importlib.util.find_spec("triton") is None:
        return "", f"needs triton; {TRITON}"
    return version("triton") or "unknown", ""


def _cuda() -> Found:
    found = torch.version.cuda or ""
    return found, "" if found else f"this torch is not built for CUDA; {TORCH}"


def _cudnn() -> Found:
    number = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    if number is None:
        return "", f"there is no cuDNN, which comes with torch for CUDA; {TORCH}"
    scale = 100 if number >= 10000 else 10  # 91900 is 9.19.0, 8907 is 8.9.7
    major, rest = divmod(number, scale * 100)
    return f"{major}.{rest // 100}.{rest % 100}", ""


def _flash_attn_3() -> Found:
    found, problem = _module("flash-attn 3", "flash_attn_interface", "flash-attn-3", FLASH_ATTN_3)
    if not problem:
        function = importlib.import_module("flash_attn_interface").flash_attn_func
        if "return_attn_probs" not in inspect.signature(function).parameters:
            return (
                "",
                f"this flash-attn 3 is from before September 2025, and returns no LSE; {_NEW}",
            )
    return found, problem


def _flashinfer() -> Found:
    found, problem = _module("flashinfer", "flashinfer", "flashinfer-python", FLASHINFER)
    if not problem and version("flashinfer-jit-cache") is None and _nvcc() is None:
        return "", f"flashinfer compiles at its first call, and there is no nvcc; {JIT_CACHE}"
    return found, problem


def _nvcc() -> str | None:
    """Return the path of nvcc, as torch's extensions look it up."""
    from torch.utils.cpp_extension import CUDA_HOME

    return shutil.which("nvcc") or (CUDA_HOME and shutil.which(f"{CUDA_HOME}/bin/nvcc"))


def _cuda_kernels() -> Found:
    from . import cuda

    return _compiled(cuda.missing())


def _cutlass_kernels() -> Found:
    from . import cutlass

    return _compiled(cutlass.missing())


def _compiled(missing: str | None) -> Found:
    return ("built", "") if missing is None else ("", missing)


TRITON = "pip install triton"
FLASH_ATTN = "pip install 'livetalk[flash-attn]'"
FLASH_ATTN_3 = "pip install 'flash-attn-3' from PyTorch's package index"
FLASHINFER = "pip install 'livetalk[flashinfer]'"
JIT_CACHE = "pip install flashinfer-jit-cache, or install the CUDA toolkit"
CUDNN_FRONTEND = "pip install 'livetalk[cudnn]'"
QUACK = "pip install 'livetalk[quack]'"
_NEW = "install a newer one"
_EPILOGUES = f"{__package__.rpartition('.')[0]}.ops.fp8_gemm._quack"

LIBRARIES: Mapping[str, Library] = MappingProxyType(
    {
        "cuda": Library(find=_cuda, install=TORCH),
        "cudnn": Library(find=_cudnn, install="pip install -U nvidia-cudnn-cu13, or a newer torch"),
        "cudnn-frontend": Library(
            find=partial(
                _module, "cudnn-frontend", "cudnn", "nvidia-cudnn-frontend", CUDNN_FRONTEND
            ),
            install=CUDNN_FRONTEND,
        ),
        "triton": Library(find=_triton, install=TRITON),
        "flash-attn 3": Library(find=_flash_attn_3, install=FLASH_ATTN_3),
        "flash-attn": Library(
            find=partial(_module, "flash-attn", "flash_attn", "flash-attn", FLASH_ATTN),
            install=FLASH_ATTN,
        ),
        "flashinfer": Library(find=_flashinfer, install=FLASHINFER),
        "quack": Library(
            find=partial(_module, "quack", _EPILOGUES, "quack-kernels", QUACK), install=QUACK
        ),
        "cuda kernels": Library(find=_cuda_kernels, install="make cuda"),
        "cutlass kernels": Library(find=_cutlass_kernels, install="make cutlass"),
    }
)

INSTALLED = Libraries()
