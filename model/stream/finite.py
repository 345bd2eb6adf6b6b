"""Catches NaN and Inf in the chunk in which they arise, and says where."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from livetalk_kernels.errors import NumericsError
from livetalk_kernels.runtime.comm import Communicator, LocalCommunicator


class FiniteGuard:
    """Records per stage whether a tensor is finite; reads the records only on request.

    Records stay on the tensor's device, so that checking adds no wait; `raise_if_bad` waits, and is
    called where the frames are copied to the host anyway.
    """

    def __init__(self, world: Communicator | None = None) -> None:
        """Start without records; ``world``: ranks that record equal stages and raise together."""
        self._notes: list[tuple[str, Tensor]] = []
        self._world = LocalCommunicator() if world is None else world

    def check(self, stage: str, tensor: Tensor) -> None:
        """Record whether all values of a float tensor are finite."""
        self._notes.append((stage, torch.isfinite(tensor).all()))

    def collect(self) -> "Verdict":
        """Hand over the records so far, agreed on by all ranks and still on the device."""
        notes, self._notes = self._notes, []
        if not notes:
            return Verdict((), torch.ones(0, dtype=torch.int32))
        finite = torch.stack([note for _, note in notes]).int()
        agreed = self._world.all_reduce(finite, "min", kind="guard")
        return Verdict(tuple(stage for stage, _ in notes), agreed)

    def raise_if_bad(self) -> None:
        """Discard the records; raise for the first bad one.

        Raises:
            NumericsError: A recorded tensor contained NaN or Inf; the message names the stage.
        """
        verdict = self.collect()
        verdict.raise_if_bad(verdict.finite.tolist())


class Verdict(NamedTuple):
    """Records that are copied to the host along with the frames they concern.

    Attributes:
        stages: Names, in order.
        finite: int32, one per stage, on the device: 1 if all of its values are finite.
    """

    stages: tuple[str, ...]
    finite: Tensor

    def raise_if_bad(self, finite: Iterable[object]) -> None:
        """Raise for the first stage whose entry in ``finite``, on the host, is false.

        Raises:
            NumericsError: The message names the stage.
        """
        for stage, good in zip(self.stages, finite, strict=True):
            if not good:
                raise NumericsError(
                    stage,
                    "NaN or Inf in its output; check the weights (livetalk doctor) "
                    "or run with --dtype fp32",
                )
