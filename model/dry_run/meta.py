"""Operators on the meta device, without torch's Python implementations.

The first of those imports torch's compiler, which takes a second: longer than the whole recording.
"""

from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

_ATEN = torch.ops.aten


def on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator on meta tensors."""
    packet = func._overloadpacket
    if "out" in kwargs:
        return kwargs["out"]
    if packet in _SHAPED:
        return _SHAPED[packet](*args, **kwargs)
    if torch.Tag.pointwise not in func.tags or packet in _COPIES:
        return func(*args, **kwargs)
    if func._schema.returns[0].alias_info is not None:
        return args[0]
    tensors = [value for value in args if isinstance(value, Tensor)]
    largest = max(tensors, key=Tensor.numel)
    shape = _broadcast([tensor.shape for tensor in tensors])
    dtype = torch.bool if packet in _COMPARISONS else _promoted(args)
    if shape == largest.shape:
        return _like(largest, dtype=dtype)
    return largest.new_empty(shape, dtype=dtype)


def _like(x: Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    """Act like `torch.empty_like`; a tensor in neither format becomes contiguous."""
    last = x.ndim == 5 and not x.is_contiguous() and x.permute(0, 2, 3, 4, 1).is_contiguous()
    layout = torch.channels_last_3d if last else torch.contiguous_format
    return torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device, memory_format=layout)


def _broadcast(shapes: list[torch.Size]) -> torch.Size:
    """Act like `torch.broadcast_shapes`, which imports a computer algebra system."""
    if all(shape == shapes[0] for shape in shapes):
        return shapes[0]
    reversed_dims = zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
    sizes = [next((size for size in dims if size != 1), 1) for dims in reversed_dims]
    return torch.Size(reversed(sizes))


def _promoted(args: Any) -> torch.dtype:
    if isinstance(args[0], Tensor) and args[0].dtype == torch.bool:
        args = args[1:]  # a condition
    first, *others = (value for value in args if isinstance(value, Tensor | float | int))
    dtype: torch.dtype = torch.result_type(first, others[0] if others else first)
    return dtype


def _cat(tensors: list[Tensor], dim: int = 0) -> Tensor:
    first = tensors[0]
    shape = list(first.shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    planar = first.ndim < 5 or not first.permute(0, 2, 3, 4, 1).is_contiguous()
    layout = torch.contiguous_format if planar else torch.channels_last_3d
    return torch.empty(shape, dtype=first.dtype, device=first.device, memory_format=layout)


def _stack(tensors: list[Tensor], dim: int = 0) -> Tensor:
    shape = list(tensors[0].shape)
    shape.insert(dim % (len(shape) + 1), len(tensors))
    return tensors[0].new_empty(shape)


def _reduced(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    dropped = {dim % x.ndim for dim in dims}
    shape = [1 if dim in dropped else size for dim, size in enumerate(x.shape)]
    return x.new_empty(
        shape if keepdim else [s for dim, s in enumerate(x.shape) if dim not in dropped]
    )


def _vector_norm(x: Tensor, order: float, dims: list[int], keepdim: bool = False) -> Tensor:
    return _reduced(x, dims, keepdim)


def _std_mean(
    x: Tensor, dims: list[int], *, correction: int, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    return _reduced(x, dims, keepdim), _reduced(x, dims, keepdim)


def _layer_norm(x: Tensor, shape: list[int], *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows = *x.shape[: x.ndim - len(shape)], *[1] * len(shape)
    return _like(x), x.new_empty(rows), x.new_empty(rows)


def _group_norm(x: Tensor, weight: Any, bias: Any, *sizes: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, _, _, groups, _ = sizes
    return _like(x), x.new_empty(batch, groups), x.new_empty(batch, groups)


def _index(x: Tensor, indices: list[Tensor | None]) -> Tensor:
    shape = list(x.shape)
    for dim, index in enumerate(indices):
        if index is not None:
            shape[dim] = index.numel()
    return x.new_empty(shape)


def _clone(x: Tensor, *, memory_format: torch.memory_format | None = None) -> Tensor:
    if memory_format in (None, torch.preserve_format):
        return _like(x)
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


def _repeat(x: Tensor, repeats: list[int]) -> Tensor:
    shape = [1] * (len(repeats) - x.ndim) + list(x.shape)
    return x.new_empty([size * times for size, times in zip(shape, repeats, strict=True)])


def _convolution(
    x: Tensor, weight: Tensor, bias: Any, stride: list[int], padding: list[int], *_: Any
) -> Tensor:
    steps, borders = (v * (x.ndim - 2) if len(v) == 1 else v for v in (stride, padding))
    sizes = zip(x.shape[2:], weight.shape[2:], steps, borders, strict=True)
    spatial = [(size + 2 * border - taps) // step + 1 for size, taps, step, border in sizes]
    return x.new_empty([x.shape[0], weight.shape[0], *spatial])


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(*left.shape[:-1], right.shape[-1])


def _arange(*bounds: int, dtype: torch.dtype = torch.int64, **_: Any) -> Tensor:
    return torch.empty(len(range(*bounds)), dtype=dtype, device="meta")


_COPIES = (_ATEN._to_copy, _ATEN.copy_)
_COMPARISONS = (_ATEN.gt, _ATEN.lt, _ATEN.ge, _ATEN.le, _ATEN.eq, _ATEN.ne)
_SHAPED: Mapping[Any, Callable[..., Any]] = {
    _ATEN.arange: _arange,
    _ATEN.empty_like: _like,
    _ATEN.zeros_like: _like,
    _ATEN.index: _index,
    _ATEN.index_put_: lambda x, *_: x,
    _ATEN.clone: _clone,
    _ATEN.repeat: _repeat,
    _ATEN.convolution: _convolution,
    _ATEN._upsample_nearest_exact2d: lambda x, size, *_: x.new_empty(*x.shape[:2], *size),
    _ATEN.mm: _matmul,
    _ATEN.bmm: _matmul,
    _ATEN.addmm: lambda bias, left, right, **_: _matmul(left, right),
    _ATEN.cat: _cat,
    _ATEN.stack: _stack,
    _ATEN.linalg_vector_norm: _vector_norm,
    _ATEN.std_mean: _std_mean,
    _ATEN.native_layer_norm: _layer_norm,
    _ATEN.native_group_norm: _group_norm,
    _ATEN.upsample_linear1d: lambda x, size, *_: x.new_empty(*x.shape[:2], *size),
    _ATEN._safe_softmax: lambda x, dim, dtype=None: _like(x),
}
