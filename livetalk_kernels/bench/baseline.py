"""What backends are compared with: the reference in eager PyTorch, and through torch.compile."""

import warnings
from collections.abc import Callable
from typing import Any

import torch

from ..registry import load_backend
from ..spec import Arguments

EAGER, COMPILE = "eager", "compile"
MAX_REASON = 160


def compile_reference(op: str, arguments: Arguments) -> tuple[Callable[..., Any] | None, str]:
    """Compile the reference for these arguments by torch.compile, as it is by default.

    Args:
        op: Name of the op.
        arguments: Of a call; it is compiled for their very sizes.

    Returns:
        The compiled function, called once so that timing meets no compiler; or None, and why,
        for example that there is no C++ compiler.
    """
    torch.compiler.reset()  # else the limit of recompilations leaves later cases in eager
    run = torch.compile(load_backend(op, "reference").run, dynamic=False)
    positional, keywords = arguments
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the compiler leaves to eager
            run(*positional, **keywords)
    except Exception as error:  # compilers fail in many ways; the backends go on
        return None, _brief(error)
    return run, ""


def _brief(error: Exception) -> str:
    text, _, _ = " ".join(str(error).split()).partition(" Set TORCHDYNAMO_VERBOSE")
    return f"torch.compile fails: {text}"[:MAX_REASON]
