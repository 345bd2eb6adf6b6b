"""A function's kernels launched all at once: captured in a CUDA graph, replayed with new inputs.

`GraphedFunction` does what is the same everywhere: static buffers, when to copy into them, when to
capture anew. An `Engine` captures. Untested on a GPU.

What is captured must keep to the rules of CUDA graphs: it does not wait for the GPU, copies nothing
from pageable memory, draws no random numbers, and decides nothing by the values of tensors. NCCL's
collectives may be inside, on every rank alike; gloo's may not, for they run on the CPU.

Source: PyTorch's notes on CUDA semantics, section "CUDA Graphs".
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from livetalk_kernels.errors import UserError

WARM_UP_CALLS = 3  # Triton compiles, cuDNN and cuBLAS choose and make workspaces; see the source

Varying = TypeVar("Varying")
Constant = TypeVar("Constant")
Output = TypeVar("Output")
Replay = Callable[[], object]


class Engine(Protocol):
    """Captures calls, which read and write the same memory every time."""

    def warm_up(self, call: Callable[[], object]) -> None:
        """Call so often that everything which happens only once has happened."""

    def capture(self, call: Callable[[], Output]) -> tuple[Output, Replay]:
        """Capture one call.

        Returns:
            The call's outputs, not yet filled; and what fills these same tensors, by doing all
            that the call does.
        """


class CudaEngine:
    """Captures with ``torch.cuda.CUDAGraph``. Untested on a GPU.

    The graphs of one engine share a pool of memory: what lies there between the kernels of one is
    overwritten by another, outputs excepted. So no two of them may run at the same time: replay
    them on one stream, or let the streams wait for each other.
    """

    def __init__(self, device: torch.device) -> None:
        """For functions that run on ``device``."""
        self._device = device
        self._side = torch.cuda.Stream(device)
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def warm_up(self, call: Callable[[], object]) -> None:
        """Call on the stream that captures."""
        current = torch.cuda.current_stream(self._device)
        self._side.wait_stream(current)
        try:
            with torch.cuda.stream(self._side):
                for _ in range(WARM_UP_CALLS):
                    call()
        finally:  # what the calls read may be freed, and used again on the current stream
            current.wait_stream(self._side)

    def capture(self, call: Callable[[], Output]) -> tuple[Output, Replay]:
        """See `Engine`. It waits for the device before the capture, not within."""
        # A pool whose graphs are all gone cannot be used again: share that of a living graph.
        pool = next((graph.pool() for graph in self._graphs), None)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what other threads do, such as NCCL's watchdog, does not spoil the capture.
        with (
            # After a capture that fails, torch.cuda.graph leaves its own stream current.
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            torch.cuda.graph(
                graph, pool=pool, stream=self._side, capture_error_mode="thread_local"
            ),
        ):
            outputs = call()
        self._graphs.add(graph)
        return outputs, graph.replay


class GraphedFunction(Generic[Varying, Constant, Output]):
    """``function(varying, constant)``, captured once per signature and replayed from then on.

    Both arguments, and the result, are tensors in any nesting of tuples, lists, mappings and
    dataclasses.

    ``varying`` is copied into static buffers before every replay, without what lies there already:
    the buffers themselves, and tensors that are the same object in the same version as the last
    time (tensors made in inference mode have no version and are always copied). Buffers are laid
    out as the tensors are: same strides, and views of one storage stay views of one storage.

    ``constant`` is read where it lies and kept alive by the graph. So are the model's weights,
    which must stay where they are. Other constants, or ``varying`` of another structure, shape,
    stride, dtype or device, make another graph.

    The result is what the graph writes: **it is overwritten by the next call with the same
    signature**. Copy what must live longer.

    Replays run on the current stream; use one stream, or let streams wait for each other.
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
        """Capture nothing yet.

        Args:
            function: What is captured.
            engine: Who captures.
            name: What messages call the function.
            limit: Graphs that are kept; the one used longest ago goes first.
            in_place: The function changes its ``varying`` tensors, which are then the buffers: a
                state that stays there from call to call if the caller passes the buffers back,
                and is copied into them if not.
        """
        assert limit > 0
        self._function, self._engine, self._name = function, engine, name
        self._limit, self._in_place = limit, in_place
        self._graphs: list[_Graph[Output]] = []

    def __call__(self, varying: Varying, constant: Constant) -> Output:
        """Replay; capture before that if there is no graph for these arguments.

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
        """Forget all graphs and free their memory."""
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
    """Part of a storage that inputs lie in: their (index, offset), and its length in elements."""

    members: tuple[tuple[int, int], ...]
    length: int


class _Buffers:
    """Static memory for inputs, laid out as they are."""

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
        """Copy what does not lie here yet; ``always``: also what was copied here the last time."""
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
        """Whether it serves arguments of this signature with these constants."""
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
    """Keys and values one level down; None for what is not taken apart."""
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, tuple | list):
        return list(enumerate(tree))
    if is_dataclass(tree) and not isinstance(tree, type):
        return [(field.name, getattr(tree, field.name)) for field in fields(tree)]
    return None


def tensors_of(tree: object) -> list[Tensor]:
    """All tensors in a nesting of tuples, lists, mappings and dataclasses, in its order."""
    tensors: list[Tensor] = []
    _take_apart(tree, tensors)
    return tensors


def _take_apart(tree: object, tensors: list[Tensor]) -> object:
    """Append the tensors; return all else, and the tensors' properties, to be compared."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
        steps = [stride for size, stride in zip(tree.shape, tree.stride(), strict=True) if size > 1]
        return tree.shape, tuple(steps), tree.dtype, tree.device  # others are never stepped
    children = _children(tree)
    if children is None:
        return type(tree), tree
    return type(tree), tuple((key, _take_apart(child, tensors)) for key, child in children)


def _rebuild(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """The same tree with other tensors, which are taken in its order."""
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
    """Where tensors lie relative to others of the same storage and dtype."""
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
    """Elements of the storage from a tensor's first to its last."""
    if tensor.numel() == 0:
        return 0
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)
