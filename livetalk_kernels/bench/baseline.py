"""Baselines for the backends: the reference in eager PyTorch, and through torch.compile."""

import warnings
from collections.abc import Callable
from typing import Any

import torch

from ..registry import load_backend
from ..spec import Arguments

EAGER, COMPILE = "eager", "compile"
MAX_REASON = 160


def compile_reference(op: str, arguments: Arguments) -> tuple[Callable[..., Any] | None, str]:
    """Compile the reference for these arguments with torch.compile's defaults.

    Args:
        op: Name of the op.
        arguments: Arguments of a call; compiled for exactly their sizes.

    Returns:
        The compiled function, called once so that timing excludes compilation; or None, and why,
        for example that there is no C++ compiler.
    """
    torch.compiler.reset()  # else the recompilation limit leaves later cases in eager mode
    run = torch.compile(load_backend(op, "reference").run, dynamic=False)
    positional, keywords = arguments
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what the compiler leaves to eager
            run(*positional, **keywords)
    except Exception as error:  # compilers fail in many ways; the backends continue
        return None, _brief(error)
    return run, ""


def _brief(error: Exception) -> str:
    text, _, _ = " ".join(str(error).split()).partition(" Set TORCHDYNAMO_VERBOSE")
    return f"torch.compile fails: {text}"[:MAX_REASON]
