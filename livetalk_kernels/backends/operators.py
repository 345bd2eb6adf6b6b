"""Our compiled kernels as torch operators, so that tracing, fake tensors and opcheck see them."""

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "livetalk"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


def register_fake(name: str, fake: Callable[..., Any]) -> None:
    """Give an operator of ours, ``livetalk::<name>``, its fake implementation."""
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


def compiled(name: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """Take the operator ``livetalk::<name>`` of a compiled library that has been loaded.

    Args:
        name: Name of the operator.
        fake: Empty outputs for a call's arguments; its fake implementation.

    Returns:
        The operator, with names and defaults of its schema. Where the library has none, it is
        looked for in every call; the backend's ``supports`` says why it is not there.
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
