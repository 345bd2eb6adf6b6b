"""Livetalk's kernels: ops with several backends each, and the dispatch that picks one.

``bind_ops`` gives a model its ops; ``KernelConfig`` says which backends the user wants.
"""

from .config import KernelConfig
from .dispatch import support_table
from .errors import NumericsError, UserError
from .ops import Ops, bind_ops

__all__ = ["KernelConfig", "NumericsError", "Ops", "UserError", "bind_ops", "support_table"]
