"""The dtypes that ops compute in, and how exactly fp32 is multiplied."""

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # largest finite e4m3fn value; casts beyond it give NaN, so every caller clamps
FP8_BLOCK = 128  # elements that share a scale, where a row has more than one

HALF_DTYPES = (torch.float16, torch.bfloat16)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name for display and files: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def math_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that formulas are evaluated in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def full_fp32(x: Tensor) -> AbstractContextManager[None]:
    """Multiply fp32 as fp32 within the block, not as TF32, which keeps 10 bits of each factor.

    PyTorch lets cuDNN use TF32 by default: fp32 convolutions on a GPU are then wrong by 3e-4.
    The switches are process-wide, so they are restored when the last thread leaves; meanwhile
    another thread's convolutions may be more exact than requested, never less.

    Args:
        x: An operand; the block changes nothing unless it is fp32 on a GPU.
    """
    return _IEEE if x.is_cuda and x.dtype == torch.float32 else nullcontext()


class _Ieee:
    """Disables TF32 while at least one thread is inside."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._allowed = (False, False)  # previous settings: convolutions, matrix products

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._allowed = _tf32()
                _set_tf32(self._allowed, "ieee")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                _set_tf32(self._allowed, "tf32")


_IEEE = _Ieee()
_cudnn: Any = torch.backends.cudnn  # its type stubs lack ``conv``


def _tf32() -> tuple[bool, bool]:
    used = _cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    return used[0] == "tf32", used[1] == "tf32"


def _set_tf32(which: tuple[bool, bool], precision: str) -> None:
    convolutions, products = which
    if convolutions:
        _cudnn.conv.fp32_precision = precision
    if products:
        torch.backends.cuda.matmul.fp32_precision = precision
