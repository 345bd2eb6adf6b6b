"""Our compiled kernels as torch operators, so that tracing, fake tensors and opcheck see them."""

from collections.abc import Callable
from typing import Any

import torch

from .extension import missing

NAMESPACE = "livetalk"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def register_fake(name: str, fake: Callable[..., Any]) -> None:
    """Give an operator of ours, ``livetalk::<name>``, its fake implementation."""
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


def register_cpu(op: str, fake: Callable[..., Any]) -> None:
    """Give ``livetalk::<op>_cpu``, which the extension defines, its fake implementation.

    Without the extension, or with one that was built before the op had a kernel, there is no such
    operator, and nothing happens; ``extension.supports`` gives the reason.

    Args:
        op: Name of the op.
        fake: Empty outputs for a call's arguments.
    """
    if missing() is None and hasattr(torch.ops.livetalk, f"{op}_cpu"):
        register_fake(f"{op}_cpu", fake)


def register_python(
    op: str, backend: str, run: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Make an operator ``livetalk::<op>_<backend>`` of a Python function.

    ``torch.library.custom_op`` does the same and costs three times as much per call.

    Args:
        op: Name of the op.
        backend: Name of the backend.
        run: The implementation.
        fake: Empty outputs for a call's arguments; its annotations give the schema, so they hold
            no ``Literal`` and no tuples but for the result.

    Returns:
        The operator, callable like ``run``.
    """
    name = f"{op}_{backend}"
    _library.define(name + torch.library.infer_schema(fake, mutates_args=()))
    _library.impl(name, run, "CompositeExplicitAutograd")
    register_fake(name, fake)
    operator: Callable[..., Any] = getattr(torch.ops.livetalk, name).default
    return operator
