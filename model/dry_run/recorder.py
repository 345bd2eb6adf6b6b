"""Records what runs on the meta device: calls, matrix products, bytes moved and bytes held.

Nothing is computed there, so the real code of a 14 B model runs in milliseconds, and everything it
does is counted where it happens. Ops record their call and return the contract's empty outputs;
everything else passes through a dispatch mode.
"""

import importlib
import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from livetalk_kernels.backends.cpu import product_dtype
from livetalk_kernels.bench.calls import case_of
from livetalk_kernels.dispatch import Choice
from livetalk_kernels.ops import Ops
from livetalk_kernels.registry import OPS_PACKAGE, load_backend, load_op, op_names
from livetalk_kernels.runtime.comm import Traffic
from livetalk_kernels.runtime.halo import ROWS_COLUMNS, Convolve, Whole
from livetalk_kernels.runtime.slices import Axes, Padding
from livetalk_kernels.spec import LINEARS, NORMS, Case, Cost, OpSpec

from .meta import on_meta

META = torch.device("meta")
CONV = "causal_conv3d"
# Operator schemas have no list defaults, so the contract's own are not among the arguments.
_CONV_DEFAULTS = {"stride": (1, 1, 1), "padding": (0, 0, 0, 0)}
_FP32 = 4
_ATEN = torch.ops.aten


class Product(NamedTuple):
    """Matrix products of one shape outside ops; a convolution counts as the product of its patches.

    Attributes:
        rows: Rows of the left operand.
        columns: Columns of the result.
        depth: Length of the sums.
        itemsize: Bytes per element.
    """

    rows: int
    columns: int
    depth: int
    itemsize: int

    @property
    def flops(self) -> int:
        """Operations of one product; a multiply-add is two."""
        return 2 * self.rows * self.columns * self.depth


class Border(NamedTuple):
    """What a convolution needs from beyond a slice of the picture.

    Attributes:
        padding: Pixels at the top, bottom, left and right.
        factor: Size of its input relative to the latent.
        channels: Channels of its input.
        frames: Frames of its input, without those of earlier calls.
    """

    padding: Padding
    factor: int
    channels: int
    frames: int


class Peak(NamedTuple):
    """Bytes held at the peak.

    Attributes:
        activations: Tensors that the model's code names or passes.
        workspace: What a backend or a library allocates in addition.
    """

    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """Sum of both."""
        return self.activations + self.workspace


@dataclass(kw_only=True)
class Phase:
    """Record of a part of the work.

    Attributes:
        calls: Op call -> count.
        products: Product outside ops -> count.
        moved: Bytes that everything else reads and writes.
        activated: Those of activation functions, which are not included in ``moved``.
        launches: Kernels outside ops.
        unbiased: Elements of convolutions whose bias is added elsewhere.
        messages: Kind -> bytes sent.
        borders: What neighbours of a slice would be sent -> count.
        gathered: Values per latent pixel that all other ranks would be sent.
        peak: The moment when most was held.
        grown: Most bytes held above the level at the start of the phase.
    """

    calls: Counter["Call"] = field(default_factory=Counter)
    products: Counter[Product] = field(default_factory=Counter)
    moved: int = 0
    activated: int = 0
    launches: int = 0
    unbiased: int = 0
    messages: Counter[str] = field(default_factory=Counter)
    borders: Counter[Border] = field(default_factory=Counter)
    gathered: int = 0
    peak: Peak = field(default_factory=lambda: Peak(0, 0))
    grown: int = 0

    @property
    def flops(self) -> int:
        """Operations of ops and products; taps on zero frames cost nothing."""
        ops = sum(call.flops * count for call, count in self.calls.items())
        return ops + sum(product.flops * count for product, count in self.products.items())


class Call:
    """A call of an op; calls are equal if their cases are.

    Attributes:
        case: Its case.
    """

    def __init__(self, case: Case) -> None:
        """Take the case."""
        self.case = case
        self._key = case.op, *case.dims.items(), *sorted(case.options.items())

    def __eq__(self, other: object) -> bool:
        """Compare op, dims and options."""
        return isinstance(other, Call) and self._key == other._key

    def __hash__(self) -> int:
        """Hash the same."""
        return hash(self._key)

    def resized(self, size: Callable[[int], int]) -> "Call":
        """Return the call with other dims."""
        dims = {letter: size(number) for letter, number in self.case.dims.items()}
        return Call(replace(self.case, dims=dims))

    @property
    def kind(self) -> str:
        """Kind of the op, one of `spec.KINDS`."""
        return _contract(self.case.op)[0].kind

    @property
    def cost(self) -> Cost:
        """Least work of one call."""
        return _contract(self.case.op)[0].cost(self.case)

    @property
    def flops(self) -> int:
        """Operations of one call's products; norms, and activations within a product, have none."""
        dims = self.case.dims
        if self.kind == LINEARS:
            return 2 * dims["M"] * dims["N"] * dims["K"]
        return 0 if self.kind == NORMS else self.cost.flops


class Recorder(TorchDispatchMode):
    """Records what runs while it is entered.

    Attributes:
        ops: Ops for the models to be recorded.
        traffic: For communicators whose messages are to be recorded.
        phases: Name -> its record, in order of their starts.
        held: Bytes of tensors created inside that still exist.
        now: The current phase.
    """

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        """Record what would run on another device.

        Args:
            device: ``cpu`` or ``cuda``; workspace is that of the backends that ``auto`` prefers.
            dtype: Dtype of the models.
        """
        super().__init__()
        self.device, self.dtype = torch.device(device), dtype
        self.ops = Ops({op: self._noting(op) for op in op_names()})
        self.traffic = Traffic()
        self.held = 0
        self.phases: dict[str, Phase] = {}
        self.now = Phase()
        self._storages: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._within = False  # whether inside an op, whose own tensors do not count
        self._widens = product_dtype(self.device, dtype) != dtype

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise the mode itself would import it

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record the block under a name, adding to what is already recorded under it."""
        outer, self.now = self.now, self.phases.setdefault(name, Phase())
        before, sent = self.held, self.traffic.bytes.copy()
        fullest, self.now.peak = self.now.peak, Peak(0, 0)
        self._look(0)
        try:
            yield
        finally:
            self.now.grown = max(self.now.grown, self.now.peak.total - before)
            self.now.peak = max(fullest, self.now.peak, key=lambda peak: peak.total)
            self.now.messages.update(self.traffic.bytes - sent)
            self.now = outer

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and record it."""
        kwargs = kwargs or {}
        out = on_meta(func, args, kwargs)
        if func.is_view:
            return out
        self._hold(func, out)
        packet = func._overloadpacket
        if self._within or "empty" in str(packet):
            return out
        now = self.now
        now.launches += 1
        if packet in _PRODUCTS:
            product, count = _PRODUCTS[packet](args, out)
            now.products[product] += count
            self._look(self._product_workspace(packet, args, product))
        else:
            moved = sum(map(_bytes, (*args, *kwargs.values(), out)))
            if packet in _ACTIVATIONS:
                now.activated += moved
            else:
                now.moved += moved
        return out

    def _noting(self, op: str) -> Choice:
        spec, empty_outputs = _contract(op)
        defaults = _CONV_DEFAULTS if op == CONV else {}
        case = Case(op=op, device=self.device, dtype=self.dtype)
        backend = _backend(op, spec.preferred(case)[0])

        def run(*arguments: Any, **keywords: Any) -> Any:
            call = Call(case_of(op, self.device, self.dtype, arguments, keywords))
            self.now.calls[call] += 1
            self._within = True
            out = empty_outputs(*arguments, **(defaults | keywords))
            self._within = False
            if op == CONV and arguments[3] is None:
                self.now.unbiased += out.numel()
            self._look(backend.workspace(call.case))
            return out

        return Choice(name="recorder", run=run, pack=backend.pack, approximate=False, reason="")

    def _hold(self, func: Any, out: Any) -> None:
        """Track the storages that an operator has created until they are freed."""
        results = out if isinstance(out, tuple | list) else (out,)
        for result, about in zip(results, func._schema.returns, strict=False):
            if not isinstance(result, Tensor) or about.alias_info is not None:
                continue
            storage = result.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._storages:
                self._storages[key] = weakref.ref(storage, self._freeing(key, size))
                self.held += size
        if not self._within:
            self._look(0)

    def _freeing(self, key: int, size: int) -> Any:
        def free(_: object) -> None:
            del self._storages[key]
            self.held -= size

        return free

    def _look(self, workspace: int) -> None:
        if self.held + workspace > self.now.peak.total:
            self.now.peak = Peak(self.held, workspace)

    def _product_workspace(self, packet: Any, args: Any, product: Product) -> int:
        """Estimate what libraries under PyTorch allocate in addition to operands and result."""
        if packet == _ATEN.convolution:  # oneDNN reorders operands and result
            if self.device.type != "cpu":
                return 0
            x, weight = args[:2]
            copies = x.nbytes + weight.nbytes if x.shape[1] > 1 else 0
            return max(copies, product.rows * product.columns * product.itemsize)
        if not self._widens or product.itemsize == _FP32:
            return 0
        rows, columns, depth, _ = product  # see `linear.linear`
        return _FP32 * (rows * depth + depth * columns + rows * columns)


class Slice(Whole):
    """A slice of a picture whose exchanges are recorded and take up their memory.

    Received data comes from nowhere: like `HaloExchange`, without its messages.
    """

    def __init__(self, recorder: Recorder, latent: Axes, halo: Padding, world: int) -> None:
        """Be one of ``world`` slices.

        Args:
            recorder: Records the borders.
            latent: Rows and columns of the slice of the latent.
            halo: 1 if there is a neighbour at the top, bottom, left and right, else 0.
            world: Total number of slices.
        """
        self._recorder, self._latent, self._halo, self._world = recorder, latent, halo, world

    def gather(self, x: Tensor, axes: Axes = ROWS_COLUMNS) -> Tensor:
        """Gather like `Whole.gather`; all slices have this one's size."""
        self._recorder.now.gathered += x.numel() // (self._latent[0] * self._latent[1])
        if self._world == 1:
            return x
        shape = list(x.shape)
        shape[axes[0]] *= self._world
        received = x.new_empty(shape)  # one slice after another, before they are put in place
        return torch.empty_like(received)

    def join(self, x_BCTHW: Tensor, padding: Padding) -> Tensor:
        """See `Whole.join`."""
        batch, channels, frames, rows, columns = x_BCTHW.shape
        border = Border(padding, rows // self._latent[0], channels, frames)
        self._recorder.now.borders[border] += batch
        top, bottom, left, right = (p * h for p, h in zip(padding, self._halo, strict=True))
        if not any((top, bottom, left, right)):
            return x_BCTHW
        shape = (batch, channels, frames, top + rows + bottom, left + columns + right)
        return torch.empty(
            shape, dtype=x_BCTHW.dtype, device=META, memory_format=torch.channels_last_3d
        )

    def convolve(
        self,
        run: Convolve,
        x_BCTHW: Tensor,
        history_BCTHW: Tensor | None,
        *,
        taps: Axes,
        stride: Axes,
        padding: Padding,
        remember: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """See `Whole.convolve`."""
        joined = self.join(x_BCTHW, padding)
        top, bottom, left, right = (p * (1 - h) for p, h in zip(padding, self._halo, strict=True))
        return run(joined, history_BCTHW, (top, bottom, left, right)), joined


@cache
def _contract(op: str) -> tuple[OpSpec, Callable[..., Any]]:
    return load_op(op), importlib.import_module(f"{OPS_PACKAGE}.{op}").empty_outputs


_backend = cache(load_backend)


def _bytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.itemsize
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def _matrix(left: Tensor, right: Tensor) -> tuple[Product, int]:
    *batch, rows, depth = left.shape
    return Product(rows, right.shape[-1], depth, left.itemsize), math.prod(batch)


def _convolution(x: Tensor, weight: Tensor, out: Tensor) -> tuple[Product, int]:
    depth = math.prod(weight.shape[1:])
    return Product(out.numel() // out.shape[1], out.shape[1], depth, x.itemsize), 1


_PRODUCTS: Mapping[Any, Callable[[Any, Tensor], tuple[Product, int]]] = {
    _ATEN.mm: lambda args, out: _matrix(*args[:2]),
    _ATEN.addmm: lambda args, out: _matrix(*args[1:3]),
    _ATEN.bmm: lambda args, out: _matrix(*args[:2]),
    _ATEN.convolution: lambda args, out: _convolution(args[0], args[1], out),
}
_ACTIVATIONS = (_ATEN.gelu,)
