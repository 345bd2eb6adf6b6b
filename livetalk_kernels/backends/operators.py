"""Exposes our kernels as torch operators, so that tracing, fake tensors and opcheck see them."""

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "livetalk"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def register_fake(name: str, fake: Callable[..., Any]) -> None:
    """Register the fake implementation of our operator ``livetalk::<name>``."""
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


def compiled(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Return the operator ``livetalk::<name>`` of a loaded compiled library.

    Args:
        name: Name of the operator.
        fake: Its fake implementation: returns empty outputs for a call's arguments.

    Returns:
        The operator, with the names and defaults of its schema. If the library lacks it, every
        call looks it up again; the backend's ``supports`` says why it is missing.
    """
    if hasattr(torch.ops.livetalk, name):
        register_fake(name, fake)
        operator: Callable[..., Any] = getattr(torch.ops.livetalk, name).default
        return operator

    def run(*arguments: Any, **keywords: Any) -> Any:
        return getattr(torch.ops.livetalk, name).default(*arguments, **keywords)

    return run


def register_python(
    op: str, backend: str, run: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """Create an operator ``livetalk::<op>_<backend>`` from a Python function.

    ``torch.library.custom_op`` does the same at three times the cost per call.

    Args:
        op: Name of the op.
        backend: Name of the backend.
        run: The implementation.
        fake: Returns empty outputs for a call's arguments; its annotations give the schema, so
            they contain no ``Literal``, and no tuples except for the result.

    Returns:
        The operator, callable like ``run``.
    """
    name = f"{op}_{backend}"
    _library.define(name + torch.library.infer_schema(fake, mutates_args=()))
    _library.impl(name, run, "CompositeExplicitAutograd")
    register_fake(name, fake)
    operator: Callable[..., Any] = getattr(torch.ops.livetalk, name).default
    return operator
