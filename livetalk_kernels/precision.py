"""The dtypes that the ops calculate in."""

import torch

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # largest finite e4m3fn value; the cast beyond it gives NaN, so every caller clamps
FP8_BLOCK = 128  # neighbours that share a scale, where a row has more than one

HALF_DTYPES = (torch.float16, torch.bfloat16)


def dtype_name(dtype: torch.dtype) -> str:
    """Name for people and files: ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def math_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype in which a formula is evaluated: float64 for float64 inputs, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32
