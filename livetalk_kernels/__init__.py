"""Livetalk's kernels: ops with several backends each, and the dispatch that picks one.

``bind_ops`` binds a model's ops, ``KernelConfig`` holds the user's choice of backends, and
``support_table`` lists what can run here. All are imported lazily, so that a program that only
prints its help does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .errors import NumericsError, UserError

if TYPE_CHECKING:
    from .config import KernelConfig
    from .dispatch import support_table
    from .ops import Ops, bind_ops

__all__ = ["KernelConfig", "NumericsError", "Ops", "UserError", "bind_ops", "support_table"]

_HOMES = {
    "KernelConfig": "config",
    "Ops": "ops",
    "bind_ops": "ops",
    "support_table": "dispatch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
