"""Catches NaN and Inf in the chunk in which they arise, and says where."""

import torch
from torch import Tensor

from livetalk_kernels.errors import NumericsError


class FiniteGuard:
    """Notes per stage whether a tensor is finite; looks at the notes only when told to.

    The note stays on the tensor's device, so that checking costs no wait; `raise_if_bad` waits,
    and is called where the frames are copied to the host anyway.
    """

    def __init__(self) -> None:
        """Start with no notes."""
        self._notes: list[tuple[str, Tensor]] = []

    def check(self, stage: str, tensor: Tensor) -> None:
        """Note whether all values of a float tensor are finite."""
        self._notes.append((stage, torch.isfinite(tensor).all()))

    def raise_if_bad(self) -> None:
        """Forget the notes; raise for the first bad one.

        Raises:
            NumericsError: A noted tensor held NaN or Inf; the message names the stage.
        """
        notes, self._notes = self._notes, []
        for stage, finite in notes:
            if not finite:
                raise NumericsError(
                    stage,
                    "NaN or Inf in its output; check the weights (livetalk doctor) "
                    "or run with --dtype fp32",
                )
