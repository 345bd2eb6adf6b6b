"""Records what runs within a stage: a range around every op, linear layer and exchange.

Ops are wrapped where the model's ops are bound, layers observed through PyTorch's own hooks,
exchanges recorded by the communicator. Each range states which *part* of its stage it is, and an
op's also its case and its least work, computed once per signature.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from livetalk_kernels.bench.calls import case_of
from livetalk_kernels.dispatch import Choice
from livetalk_kernels.ops import Ops
from livetalk_kernels.precision import FP8, dtype_name
from livetalk_kernels.registry import load_op
from livetalk_kernels.runtime.timeline import Range, Timeline
from livetalk_kernels.spec import ACTIVATIONS, LINEARS

LINEAR, GELU = "linear", "gelu"
"""Names of the ranges of layers that are not ops."""


class Tracer:
    """Records what a model's ops and layers do.

    Attributes:
        timeline: Timeline to record to.
    """

    def __init__(self, timeline: Timeline) -> None:
        """Prepare; nothing is recorded yet."""
        self.timeline = timeline
        self._known: dict[Any, Mapping[str, Any]] = {}  # signature -> metadata

    def wrap(self, ops: Ops) -> Ops:
        """Return the same ops with every call recorded."""
        return Ops({op: self._wrapped(op, choice) for op, choice in ops.choices.items()})

    def watch(self, module: nn.Module) -> None:
        """Record every call of a linear layer or GELU in a module, from now on."""
        for layer in module.modules():
            if isinstance(layer, nn.Linear | nn.GELU):
                open_ranges: list[Range] = []
                layer.register_forward_pre_hook(self._begin(open_ranges))
                layer.register_forward_hook(_end(open_ranges))

    def _wrapped(self, op: str, choice: Choice) -> Choice:
        timeline, inner = self.timeline, choice.run

        def run(*arguments: Any, **keywords: Any) -> Any:
            with timeline.range(op, about=self._about_op(op, choice, arguments, keywords)):
                return inner(*arguments, **keywords)

        return replace(choice, run=run)

    def _about_op(
        self, op: str, choice: Choice, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Mapping[str, Any]:
        key = op, choice.name, *map(_signature, arguments), *map(_signature, keywords.items())
        about = self._known.get(key)
        if about is None:
            about = describe_op(op, choice.name, arguments, keywords)
            if choice.approximate:  # attention that quantises by itself
                about["operands"] = dtype_name(FP8)
            self._known[key] = about
        return about

    def _begin(self, open_ranges: list[Range]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def begin(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            (x,) = inputs
            key = type(layer), getattr(layer, "out_features", 0), _signature(x)
            about = self._known.get(key)
            if about is None:
                about = self._known[key] = _describe_layer(layer, x)
            measured = self.timeline.range(about["op"], about=about)
            open_ranges.append(measured.__enter__())

        return begin


def _end(open_ranges: list[Range]) -> Callable[[nn.Module, Any, Any], None]:
    def end(layer: nn.Module, inputs: Any, output: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    return end


def describe_op(
    op: str, backend: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe an op call as JSON: case (``dims``, ``options``, ``dtype``), part, FLOPs and bytes.

    Args:
        op: Name of the op.
        backend: Name of its backend.
        arguments: Positional arguments of the call.
        keywords: Keyword arguments.
    """
    first = next(x for x in (*arguments, *keywords.values()) if isinstance(x, Tensor))
    dtype = _activations(first, arguments, keywords)
    case = case_of(op, first.device, dtype, arguments, keywords)
    cost = load_op(op).cost(case)
    return {
        "op": op,
        "part": load_op(op).kind,
        "backend": backend,
        "dims": dict(case.dims),
        "options": {name: _json(value) for name, value in case.options.items()},
        "dtype": dtype_name(dtype),
        "operands": dtype_name(first.dtype),  # determines the product's limit
        "flops": cost.flops,
        "bytes": cost.bytes,
    }


def _activations(
    first: Tensor, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> torch.dtype:
    """Return the activations' dtype: for FP8 operands, that of the result or of the bias."""
    if first.dtype != FP8:
        return first.dtype
    wide = (x for x in arguments[-1:] if isinstance(x, Tensor) and x.dtype != FP8)
    return keywords.get("out_dtype") or next((x.dtype for x in wide), torch.bfloat16)


def _describe_layer(layer: nn.Module, x: Tensor) -> dict[str, Any]:
    """Describe a layer call on [..., K] likewise."""
    inputs = x.shape[-1]
    rows, item = x.numel() // inputs, x.element_size()
    if isinstance(layer, nn.Linear):
        op, part, outputs = LINEAR, LINEARS, layer.out_features
        flops = 2 * rows * inputs * outputs
        count = rows * (inputs + outputs) + (inputs + 1) * outputs
        dims = {"M": rows, "N": outputs, "K": inputs}
    else:
        op, part, flops, count = GELU, ACTIVATIONS, 0, 2 * x.numel()
        dims = {"M": rows, "K": inputs}
    return {
        "op": op,
        "part": part,
        "backend": "torch",
        "dims": dims,
        "options": {},
        "dtype": dtype_name(x.dtype),
        "operands": dtype_name(x.dtype),
        "flops": flops,
        "bytes": count * item,
    }


def _signature(value: Any) -> Any:
    """Return what distinguishes calls: sizes, strides and dtypes of tensors; other values."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, tuple):
        return tuple(map(_signature, value))
    return value


def _json(value: Any) -> Any:
    return dtype_name(value) if isinstance(value, torch.dtype) else value
