"""Launches all of a function's kernels at once: a CUDA graph, replayed with new inputs.

`GraphedFunction` does the generic part: static buffers, when to copy into them, when to recapture.
An `Engine` captures.

Captured code must follow the rules of CUDA graphs: no waiting for the GPU, no copies from pageable
memory, no random numbers, no decisions based on tensor values. NCCL's collectives may be captured,
on all ranks alike; gloo's may not, since they run on the CPU.

Source: PyTorch's notes on CUDA semantics, section "CUDA Graphs".
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from livetalk_kernels.errors import UserError

WARM_UP_CALLS = 3  # Triton compiles, cuDNN and cuBLAS tune and allocate workspaces; see source

Varying = TypeVar("Varying")
Constant = TypeVar("Constant")
Output = TypeVar("Output")
Replay = Callable[[], object]


class Engine(Protocol):
    """Captures calls, which read and write the same memory every time."""

    def warm_up(self, call: Callable[[], object]) -> None:
        """Call until everything that happens only once has happened."""

    def capture(self, call: Callable[[], Output]) -> tuple[Output, Replay]:
        """Capture one call.

        Returns:
            The call's outputs, not yet filled; and a function that fills these same tensors by
            repeating the call.
        """


class CudaEngine:
    """Captures with ``torch.cuda.CUDAGraph``.

    The graphs of one engine share a memory pool: one graph overwrites the intermediate results of
    another, though not its outputs. So no two may run at the same time: replay them on one stream,
    or synchronise the streams.
    """

    def __init__(self, device: torch.device) -> None:
        """Prepare for functions that run on ``device``."""
        self._device = device
        self._side = torch.cuda.Stream(device)
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def warm_up(self, call: Callable[[], object]) -> None:
        """Call on the capture stream."""
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        try:
            with torch.cuda.stream(self._side):
                for _ in range(WARM_UP_CALLS):
                    call()
        finally:  # what the calls read may be freed and reused on the current stream
            current.wait_stream(self._side)

    def capture(self, call: Callable[[], Output]) -> tuple[Output, Replay]:
        """Capture; waits for the device before, not during, the capture."""
        # A pool whose graphs are all gone cannot be reused: share that of a living graph.
        pool = next((graph.pool() for graph in self._graphs), None)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads, such as NCCL's watchdog, do not invalidate the capture.
        with (
            # After a failed capture, torch.cuda.graph leaves its own stream current.
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(
                graph, pool=pool, stream=self._side, capture_error_mode="thread_local"
            ),
        ):
            outputs = call()
        self._graphs.add(graph)
        return outputs, graph.replay


class GraphedFunction(Generic[Varying, Constant, Output]):
    """``function(varying, constant)``, captured once per signature and then replayed.

    Both arguments and the result are tensors in any nesting of tuples, lists, mappings and
    dataclasses.

    ``varying`` is copied into static buffers before every replay, except what is already there: the
    buffers themselves, and tensors that are the same object in the same version as last time
    (tensors made in inference mode have no version and are always copied). Buffers have the layout
    of the tensors: same strides, and views of one storage remain views of one storage.

    ``constant`` is read in place and kept alive by the graph. So are the model's weights, which
    must not move. Other constants, or ``varying`` with another structure, shape, stride, dtype or
    device, get another graph.

    The result is the graph's own output: **the next call with the same signature overwrites it**.
    Copy what must live longer.

    Replays run on the current stream; use one stream, or synchronise streams.
    """

    def __init__(
        self,
        function: Callable[[Varying, Constant], Output],
        engine: Engine,
        *,
        name: str,
        limit: int = 2,
        in_place: bool = False,
    ) -> None:
        """Prepare; nothing is captured yet.

        Args:
            function: Function to capture.
            engine: Engine that captures it.
            name: Name of the function in messages.
            limit: Maximum number of graphs kept; the least recently used is dropped first.
            in_place: The function modifies its ``varying`` tensors, which are then the buffers:
                state that persists between calls if the caller passes the buffers back, and is
                copied into them if not.
        """
        assert limit > 0
        self._function, self._engine, self._name = function, engine, name
        self._limit, self._in_place = limit, in_place
        self._graphs: list[_Graph[Output]] = []

    def __call__(self, varying: Varying, constant: Constant) -> Output:
        """Replay, after capturing if there is no graph for these arguments.

        Raises:
            UserError: The function cannot be captured.
        """
        inputs, constants = list[Tensor](), list[Tensor]()
        shape = _take_apart(varying, inputs), _take_apart(constant, constants)
        stretches = _stretches(inputs)
        graph = next((g for g in self._graphs if g.fits((shape, stretches), constants)), None)
        if graph is None:
            while len(self._graphs) >= self._limit:
                self._graphs.pop(0)  # before the capture, which may use its memory
            buffers = _Buffers(inputs, stretches)
            outputs, replay = self._capture(varying, constant, buffers, inputs)
            graph = _Graph(
                signature=(shape, stretches),
                constants=constants,
                buffers=buffers,
                outputs=outputs,
                replay=replay,
            )
        else:
            self._graphs.remove(graph)
        self._graphs.append(graph)
        graph.buffers.load(inputs, always=self._in_place)
        graph.replay()
        return graph.outputs

    def clear(self) -> None:
        """Drop all graphs and free their memory."""
        self._graphs.clear()

    def _capture(
        self, varying: Varying, constant: Constant, buffers: "_Buffers", inputs: Sequence[Tensor]
    ) -> tuple[Output, Replay]:
        static = _rebuild(varying, iter(buffers.views))

        def call() -> Output:
            return self._function(static, constant)

        # Not in inference mode, whose tensors could not be written to outside it.
        with torch.inference_mode(False), torch.no_grad():
            buffers.load(inputs, always=True)
            self._engine.warm_up(call)
            try:
                return self._engine.capture(call)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
                raise UserError(
                    f"{self._name}: cannot be captured in a CUDA graph ({reason}); "
                    "leave out --cuda-graphs"
                ) from error


@dataclass(frozen=True, kw_only=True)
class _Stretch:
    """The part of a storage that inputs occupy: their (index, offset), and its element count."""

    members: tuple[tuple[int, int], ...]
    length: int


class _Buffers:
    """Static memory for inputs, with their layout."""

    def __init__(self, inputs: Sequence[Tensor], stretches: Sequence[_Stretch]) -> None:
        self._stretches = stretches
        self._memory: list[Tensor] = []
        self._loaded: list[list[tuple[weakref.ref[Tensor], int]]] = [[] for _ in stretches]
        views: dict[int, Tensor] = {}
        with torch.inference_mode(False):
            for stretch in stretches:
                like = inputs[stretch.members[0][0]]
                memory = torch.empty(stretch.length, dtype=like.dtype, device=like.device)
                self._memory.append(memory)
                for index, offset in stretch.members:
                    source = inputs[index]
                    views[index] = memory.as_strided(source.shape, source.stride(), offset)
        self.views = [views[index] for index in range(len(inputs))]

    def load(self, inputs: Sequence[Tensor], *, always: bool) -> None:
        """Copy what is not already here; ``always`` includes what was copied here the last time."""
        for index, stretch in enumerate(self._stretches):
            sources = [inputs[member] for member, _ in stretch.members]
            views = (self.views[member] for member, _ in stretch.members)
            if all(source is view for source, view in zip(sources, views, strict=True)):
                continue
            loaded = self._loaded[index]
            if not always and loaded and _unchanged(sources, loaded):
                continue
            source, offset = sources[0], stretch.members[0][1]
            start = source.storage_offset() - offset
            self._memory[index].copy_(source.as_strided((stretch.length,), (1,), start))
            tracked = not any(source.is_inference() for source in sources)
            self._loaded[index] = [(weakref.ref(x), x._version) for x in sources if tracked]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Graph(Generic[Output]):
    signature: object
    constants: Sequence[Tensor]
    buffers: _Buffers
    outputs: Output
    replay: Replay

    def fits(self, signature: object, constants: Sequence[Tensor]) -> bool:
        """Return whether it serves arguments of this signature with these constants."""
        return self.signature == signature and all(
            mine is theirs for mine, theirs in zip(self.constants, constants, strict=True)
        )


def _unchanged(
    sources: Sequence[Tensor], loaded: Sequence[tuple[weakref.ref[Tensor], int]]
) -> bool:
    return all(
        seen() is source and version == source._version
        for source, (seen, version) in zip(sources, loaded, strict=True)
    )


def _children(tree: object) -> list[tuple[Any, object]] | None:
    """Return keys and values one level down; None for leaves."""
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, tuple | list):
        return list(enumerate(tree))
    if is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in fields(tree)]
    return None


def tensors_of(tree: object) -> list[Tensor]:
    """List all tensors in a nesting of tuples, lists, mappings and dataclasses, in order."""
    tensors: list[Tensor] = []
    _take_apart(tree, tensors)
    return tensors


def _take_apart(tree: object, tensors: list[Tensor]) -> object:
    """Append the tensors; return everything else, and the tensors' properties, for comparison."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
        steps = [stride for size, stride in zip(tree.shape, tree.stride(), strict=True) if size > 1]
        return tree.shape, tuple(steps), tree.dtype, tree.device  # strides of other axes are unused
    children = _children(tree)
    if children is None:
        return type(tree), tree
    return type(tree), tuple((key, _take_apart(child, tensors)) for key, child in children)


def _rebuild(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """Rebuild the tree with other tensors, taken in its order."""
    if isinstance(tree, Tensor):
        return next(tensors)
    children = _children(tree)
    if children is None:
        return tree
    built = {key: _rebuild(child, tensors) for key, child in children}
    if isinstance(tree, Mapping):
        return built
    if isinstance(tree, tuple | list):
        named = hasattr(tree, "_fields")
        return type(tree)(*built.values()) if named else type(tree)(built.values())
    return replace(tree, **built)


def _stretches(tensors: Sequence[Tensor]) -> tuple[_Stretch, ...]:
    """Find where tensors are relative to others of the same storage and dtype."""
    storages: dict[tuple[int, torch.dtype], list[int]] = {}
    for index, tensor in enumerate(tensors):
        key = tensor.untyped_storage().data_ptr(), tensor.dtype
        storages.setdefault(key, []).append(index)
    starts = [int(tensor.storage_offset()) for tensor in tensors]
    found = []
    for members in storages.values():
        start = min(starts[index] for index in members)
        end = max(starts[index] + _extent(tensors[index]) for index in members)
        offsets = tuple((index, starts[index] - start) for index in members)
        found.append(_Stretch(members=offsets, length=end - start))
    return tuple(found)


def _extent(tensor: Tensor) -> int:
    """Count the elements of the storage from a tensor's first to its last."""
    if tensor.numel() == 0:
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)
