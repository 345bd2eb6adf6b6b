"""A substitute for CUDA graphs, so that static buffers are tested without a GPU."""

from collections.abc import Callable
from typing import TypeVar

from ..runtime.cuda_graph import Replay, tensors_of

Output = TypeVar("Output")


class RerunEngine:
    """Captures a call by remembering it; a replay repeats the call and copies its outputs.

    As with a graph, the tensors read and written are those of the first call. One difference: a
    replay makes anew the decisions that a graph would have fixed at capture.

    Attributes:
        captures: Number of captures so far.
        replays: Number of replays so far.
    """

    def __init__(self) -> None:
        """Start with nothing captured."""
        self.captures = 0
        self.replays = 0

    def warm_up(self, call: Callable[[], object]) -> None:
        """Call once."""
        call()

    def capture(self, call: Callable[[], Output]) -> tuple[Output, Replay]:
        """Capture as `livetalk_kernels.runtime.cuda_graph.Engine` does."""
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
