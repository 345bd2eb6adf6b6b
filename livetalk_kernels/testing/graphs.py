"""A stand-in for CUDA graphs, so that static buffers are tested without a GPU."""

from collections.abc import Callable
from typing import TypeVar

from ..runtime.cuda_graph import Replay, tensors_of

Output = TypeVar("Output")


class RerunEngine:
    """Captures a call by remembering it; a replay calls it again and copies its outputs.

    As with a graph, what is read and written are the tensors of the first time. Where it differs: a
    replay decides anew what a graph would have decided when it was captured.

    Attributes:
        captures: Number of captures so far.
        replays: Number of replays so far.
    """

    def __init__(self) -> None:
        """Nothing captured."""
        self.captures = 0
        self.replays = 0

    def warm_up(self, call: Callable[[], object]) -> None:
        """Call once."""
        call()

    def capture(self, call: Callable[[], Output]) -> tuple[Output, Replay]:
        """See `livetalk_kernels.runtime.cuda_graph.Engine`."""
        self.captures += 1
        outputs = call()
        static = tensors_of(outputs)
        for tensor in static:
            tensor.fill_(float("nan") if tensor.is_floating_point() else -1)

        def replay() -> None:
            self.replays += 1
            for old, new in zip(static, tensors_of(call()), strict=True):
                old.copy_(new)

        return outputs, replay
