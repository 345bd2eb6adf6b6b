"""Fills a module with weights: from checkpoint files, or deterministic random ones.

Modules are built on the meta device, so that nothing is allocated before everything is checked.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from livetalk_kernels.errors import UserError
from livetalk_kernels.lines import list_keys
from livetalk_kernels.ops.quantize import quantize
from livetalk_kernels.precision import FP8

from .random_weights import random_weight
from .safetensors_file import FP8_DTYPES, TensorSpec
from .tensor_files import TensorFiles, open_weights

__all__ = [
    "Slot",
    "TensorFiles",
    "check_module",
    "expected_keys",
    "load_module",
    "open_weights",
    "random_module",
]

QUANTIZED_ROWS = 2048  # rows of a weight at a time
ROUNDED = (
    "the weights were cast to FP8 without scales, so that the result is approximate; use the bf16 "
    "weights, with --precision fp8 if memory is short"
)
_LARGEST = 1e9  # no training produces such a weight, but a flipped exponent bit does

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slot:
    """The destination of a checkpoint's tensor.

    Attributes:
        param: Name of the module's parameter or buffer.
        rows: Range of its rows (first dimension); None for all. Several keys may share a parameter,
            for example q, k and v in one fused matrix.
        scale: Name of the parameter for per-row scales; ``param`` is then float8_e4m3fn and gets
            the checkpoint's values quantised row by row.
    """

    param: str
    rows: slice | None = None
    scale: str | None = None


KeyMap = Mapping[str, Slot]

Share = Callable[[Tensor], tuple[Tensor, range]]
"""Tensor -> what this rank keeps of it, which is written to, and which rows these are."""


def expected_keys(module: nn.Module, key_map: KeyMap | None = None) -> dict[str, tuple[int, ...]]:
    """List the keys that a checkpoint of this module has.

    Args:
        module: The module, on any device, including meta.
        key_map: Checkpoint key -> slot. Parameters and persistent buffers that it does not mention
            are expected under their own names.

    Returns:
        Checkpoint key -> shape.
    """
    targets = _targets(module)
    return {
        key: _shape(targets[slot.param], slot) for key, slot in _slots(targets, key_map).items()
    }


def check_module(
    module: nn.Module,
    files: TensorFiles,
    *,
    key_map: KeyMap | None = None,
    ignore: Sequence[str] = (),
) -> None:
    """Check every name, shape and dtype of a checkpoint against a module; nothing is allocated.

    Args:
        module: The module, on any device, including meta.
        files: The checkpoint.
        key_map: See ``expected_keys``.
        ignore: Prefixes of checkpoint keys that the module does not need.

    Raises:
        UserError: Keys are missing, unexpected or of the wrong shape or dtype; the message
            counts and lists them.
    """
    targets = _targets(module)
    slots = _slots(targets, key_map)
    missing = [key for key in slots if key not in files.shapes]
    extra = [key for key in files.shapes if key not in slots and not key.startswith(tuple(ignore))]
    wrong = [
        f"{key}: {problem}"
        for key, slot in slots.items()
        if key in files.shapes
        and (problem := _mismatch(targets[slot.param], slot, files.shapes[key]))
    ]
    problems = [
        f"{len(keys)} {kind} ({list_keys(keys)})"
        for kind, keys in (("missing", missing), ("unexpected", extra), ("wrong", wrong))
        if keys
    ]
    if problems:
        raise UserError(
            f"{files.name}: keys do not fit the model: {'; '.join(problems)}; "
            f"{_cure(files, missing, extra)}"
        )


def _cure(files: TensorFiles, missing: Sequence[str], extra: Sequence[str]) -> str:
    """Suggest what to do about keys that do not fit."""
    scales = [key for key in extra if "scale" in key.rpartition(".")[2]]
    if files.rounded and scales:
        return (
            f"these are FP8 weights with scales of another program ({list_keys(scales)}); use the "
            "bf16 weights, with --precision fp8"
        )
    first = missing[0] if missing else ""
    prefixes = {key.removesuffix(first) for key in extra if missing and key.endswith(first)}
    counts = {prefix: sum(prefix + key in files.shapes for key in missing) for prefix in prefixes}
    best = max(counts, key=counts.__getitem__, default="")
    if counts.get(best, 0) > len(missing) // 2:
        return (
            f"{counts[best]} of those missing are there with {best!r} in front: the file holds "
            "more than this model; save these tensors alone, without the prefix"
        )
    return "use the checkpoint that belongs to this configuration"


def load_module(
    module: nn.Module,
    files: TensorFiles,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    key_map: KeyMap | None = None,
    ignore: Sequence[str] = (),
    host: Collection[str] = (),
    share: Share | None = None,
) -> None:
    """Give a module the weights of a checkpoint.

    Every name, shape and dtype is checked first. Then each parameter is allocated once, in its
    final dtype on its final device, and filled from the mapped files, so that the extra host
    memory stays below one tensor.

    Args:
        module: Built on the meta device; its parameters are replaced and need no gradient.
        files: The checkpoint. Any floating dtype is accepted and cast.
        dtype: Dtype of all floating-point parameters and buffers; integers and FP8 keep theirs.
        device: Device to load them to.
        key_map: See ``expected_keys``.
        ignore: Prefixes of checkpoint keys that the module does not need.
        host: Names of parameters that stay on the host, in memory that a GPU reads directly.
        share: For parameters that are shared out among ranks: gives this rank's rows, which alone
            are read. None: every parameter is whole.

    Raises:
        UserError: Keys are missing, unexpected or of the wrong shape or dtype; the message
            counts and lists them, and nothing has been allocated. Or a weight is NaN, Inf or beyond
            1e9, which indicates damage.
    """
    check_module(module, files, key_map=key_map, ignore=ignore)
    if files.rounded:
        logger.warning("%s: %s", files.name, ROUNDED)
    targets = _targets(module)
    slots = _slots(targets, key_map)
    tensors = _allocate(targets, slots, dtype, torch.device(device), host, share)
    with torch.no_grad():
        for key in sorted(slots, key=lambda key: (files.path_of(key), key)):
            slot = slots[key]
            target, values = _match(tensors[slot.param], slot, files.read(key), share)
            _check_values(values, key, files)
            _fill(tensors, slot, target, values)
    _replace(module, targets, tensors)


def random_module(
    module: nn.Module,
    *,
    seed: int,
    dtype: torch.dtype,
    device: torch.device | str,
    key_map: KeyMap | None = None,
    host: Collection[str] = (),
    share: Share | None = None,
) -> None:
    """Give a module random weights, which depend only on the seed and the checkpoint keys.

    They are drawn on the device, and equal on every one, with or without fused parameters; in bf16
    they are the rounded fp32 ones, in FP8 these, quantised by the plain formula. Their
    distribution, `random_weight`'s, keeps activations near one.

    Args:
        module: Built on the meta device; its parameters are replaced and need no gradient.
        seed: Seed.
        dtype: Dtype of all parameters and buffers, which must be floating-point.
        device: Device to create them on.
        key_map: See ``expected_keys``.
        host: See ``load_module``.
        share: See ``load_module``.
    """
    targets = _targets(module)
    slots = _slots(targets, key_map)
    where = torch.device(device)
    tensors = _allocate(targets, slots, dtype, where, host, share)
    with torch.no_grad():
        for key, slot in slots.items():
            shape = _shape(tensors[slot.param], slot)
            values = random_weight(key, shape, seed=seed, dtype=dtype, device=where)
            target, values = _match(tensors[slot.param], slot, values, share)
            _fill(tensors, slot, target, values, quantizer="reference")
    _replace(module, targets, tensors)


def _check_values(values: Tensor, key: str, files: TensorFiles) -> None:
    """Reject values that no training produces, but a flipped bit does.

    Raises:
        UserError: There are any.
    """
    if not values.is_floating_point() or not values.numel():
        return
    wide = values.to(torch.bfloat16) if values.dtype in FP8_DTYPES else values
    least, most = (value.item() for value in wide.aminmax())
    if not (least >= -_LARGEST and most <= _LARGEST):  # NaN is neither
        raise UserError(
            f"{files.path_of(key)}: {key} holds {least:.3g} to {most:.3g}, which no training "
            "leaves: the file is damaged; download it again"
        )


def _fill(
    tensors: Mapping[str, Tensor],
    slot: Slot,
    target: Tensor,
    values: Tensor,
    *,
    quantizer: str | None = None,
) -> None:
    """Copy a checkpoint's tensor to its place; ``quantizer``: the backend for FP8."""
    if slot.scale is None:
        target.copy_(values)
        return
    scales = tensors[slot.scale] if slot.rows is None else tensors[slot.scale][slot.rows]
    # In pieces, so that neither host nor device holds the whole matrix in another dtype.
    for start in range(0, len(values), QUANTIZED_ROWS):
        rows = slice(start, start + QUANTIZED_ROWS)
        part = values[rows].to(target.device)
        # FP8 values are exact in bf16, which supports computation.
        exact = part.to(torch.bfloat16) if part.dtype in FP8_DTYPES else part
        quantized, scale = quantize(exact, backend=quantizer)
        target[rows] = quantized
        scales[rows] = scale


def _targets(module: nn.Module) -> dict[str, Tensor]:
    """Collect parameters and persistent buffers by name; a tied one once, under its first name."""
    persistent = module.state_dict(keep_vars=True).keys()
    named = dict(module.named_parameters()) | dict(module.named_buffers())
    return {name: tensor for name, tensor in named.items() if name in persistent}


def _slots(targets: Mapping[str, Tensor], key_map: KeyMap | None) -> dict[str, Slot]:
    """Return slots of all keys, after asserting that they cover every row of every target once."""
    slots = dict(key_map or {})
    mapped = {slot.param for slot in slots.values()}
    scales = {slot.scale for slot in slots.values() if slot.scale is not None}
    known = mapped | scales
    assert known <= targets.keys(), f"key_map names no parameter: {known - targets.keys()}"
    slots |= {name: Slot(name) for name in targets if name not in known}
    ranges: dict[str, list[range]] = {name: [] for name in targets if name not in scales}
    for slot in slots.values():
        ranges[slot.param].append(range(_rows(targets[slot.param]))[slot.rows or slice(None)])
    for name, parts in ranges.items():
        end = 0
        for part in sorted(parts, key=lambda part: part.start):
            assert part.start == end, f"key_map: rows of {name} before {part} not covered once"
            end = part.stop
        assert end == _rows(targets[name]), f"key_map: rows of {name} from {end} not covered"
    return slots


def _rows(target: Tensor) -> int:
    return target.shape[0] if target.ndim else 1


def _shape(target: Tensor, slot: Slot) -> tuple[int, ...]:
    """Return a slot's shape. Slicing the target would gather it where it is shared out."""
    if slot.rows is None:
        return tuple(target.shape)
    return (len(range(target.shape[0])[slot.rows]), *target.shape[1:])


def _match(
    tensor: Tensor, slot: Slot, values: Tensor, share: Share | None
) -> tuple[Tensor, Tensor]:
    """Return a slot's place in its tensor and the values for it: those of this rank's rows."""
    if share is None or not tensor.ndim:
        return tensor if slot.rows is None else tensor[slot.rows], values
    assert slot.scale is None, "no rank has a part of a quantised weight"
    local, mine = share(tensor)
    rows = range(tensor.shape[0])[slot.rows or slice(None)]
    begin = max(mine.start, rows.start)
    end = max(min(mine.stop, rows.stop), begin)
    target = local[begin - mine.start : end - mine.start]
    return target, values[begin - rows.start : end - rows.start]


def _mismatch(target: Tensor, slot: Slot, spec: TensorSpec) -> str | None:
    (shape, dtype), wanted = spec, _shape(target, slot)
    if shape != wanted:
        return f"shape {list(shape)} instead of {list(wanted)}"
    if target.is_floating_point() and not dtype.is_floating_point:
        return f"dtype {dtype} instead of a floating-point one"
    if not target.is_floating_point() and dtype != target.dtype:
        return f"dtype {dtype} instead of {target.dtype}"
    return None


def _allocate(
    targets: Mapping[str, Tensor],
    slots: KeyMap,
    dtype: torch.dtype,
    device: torch.device,
    host: Collection[str],
    share: Share | None,
) -> dict[str, Tensor]:
    """Allocate tensors of the targets' shapes; integers, FP8 and its scales keep their dtypes.

    Those that are shared out are made like the targets, which know their ranks.
    """
    scales = {slot.scale for slot in slots.values()}
    kept = {
        name
        for name, target in targets.items()
        if name in scales or target.dtype == FP8 or not target.is_floating_point()
    }
    tensors = {}
    for name, target in targets.items():
        options: dict[str, Any] = {
            "dtype": target.dtype if name in kept else dtype,
            "device": "cpu" if name in host else device,
            "pin_memory": name in host and device.type == "cuda",
        }
        # Not `empty_like` for all: its first call on the meta device imports 32 MB of code.
        tensors[name] = (
            torch.empty(target.shape, **options)
            if share is None
            else torch.empty_like(target, **options)
        )
    return tensors


def _replace(
    module: nn.Module, targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    """Replace the targets by tensors, everywhere if a parameter is tied."""
    names = {id(target): name for name, target in targets.items()}
    new: dict[str, Tensor] = {
        name: nn.Parameter(tensors[name], requires_grad=False)
        if isinstance(target, nn.Parameter)
        else tensors[name]
        for name, target in targets.items()
    }
    for part in module.modules():
        own = part.named_parameters(recurse=False, remove_duplicate=False)
        buffers = part.named_buffers(recurse=False, remove_duplicate=False)
        for attribute, old in [*own, *buffers]:
            if id(old) in names:
                setattr(part, attribute, new[names[id(old)]])
