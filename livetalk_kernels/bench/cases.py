"""Selects the cases to time: the op's own, or sizes that the user gives."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Generator

from ..errors import UserError
from ..machine import last_level_cache, memory
from ..registry import load_backend, load_op
from ..spec import Case, as_tuple
from ..units import data_size
from .roofline import Roofline, probe_bytes
from .timer import COLD_CACHES

ALL_LARGE = "model"  # value of --case for every large case
ONE_RANK = ("_ulysses8", "_ring8")  # suffixes of the cases that one of several ranks runs
MAX_SWEEP = 256
MAX_SIZE = 2**31 - 1  # per letter; kernels use 32-bit indices
MAX_REASON = 200
CASE_SECONDS = 120.0
CALLS, SLOWDOWN = 25, 8  # calls per case including checks; eager PyTorch's time over the floor
FP64_TENSORS = 4  # fp64 copies of all inputs and outputs that the check holds at once


def parse_shape(text: str) -> dict[str, tuple[int, ...]]:
    """Parse ``L=1512,D=5120`` into letter -> sizes.

    A letter may have several: ``L=1,2,3``, or ``L=512:4096:512`` (from, to inclusive, step).

    Raises:
        UserError: The text is of another form.
    """
    shape: dict[str, tuple[int, ...]] = {}
    letter = ""
    for part in text.split(","):
        name, equals, sizes = part.rpartition("=")
        letter = name.strip() if equals else letter
        if not letter:
            raise _misread(text)
        shape[letter] = shape.get(letter, ()) + _sizes(text, sizes.strip())
    return shape


def _sizes(text: str, sizes: str) -> tuple[int, ...]:
    words = sizes.split(":")
    digits = all(word.isdecimal() and len(word) <= len(str(MAX_SIZE)) for word in words)
    if len(words) not in (1, 3) or not digits:
        raise _misread(text)
    numbers = [int(word) for word in words]
    if not all(1 <= number <= MAX_SIZE for number in numbers):
        raise UserError(f"--shape {text:.80}: {sizes} is not from 1 to {MAX_SIZE}")
    if len(numbers) == 1:
        return (numbers[0],)
    first, last, step = numbers
    found = range(first, last + 1, step)
    if not found:
        raise UserError(f"--shape {text:.80}: {sizes} is empty; write from:to:by, as 512:4096:512")
    if len(found) > MAX_SWEEP:
        raise UserError(f"--shape {text:.80}: {sizes} is {len(found)} sizes; {MAX_SWEEP} at most")
    return tuple(found)


def _misread(text: str) -> UserError:
    return UserError(
        f"--shape {text:.80}: not understood; write L=1512,D=5120, or L=1,2,3, or L=512:4096:512"
    )


def select_cases(
    op: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    names: Sequence[str] = (),
    shapes: Iterable[str] = (),
) -> list[Case]:
    """Select the cases of an op to time.

    Args:
        op: Name of the op.
        device: Device to run on.
        dtype: Dtype of the activations.
        names: Cases of the contract, or ``model`` for all of the models' sizes; names that the op
            lacks are skipped. None: the models' sizes, or on a CPU those of ``mid`` and of one
            rank of eight.
        shapes: Sizes that replace a case's own, as in `parse_shape`; each is a sweep over all
            combinations. The first selected case provides everything else.

    Raises:
        UserError: A letter that the op lacks, incompatible sizes, or a sweep of too many
            cases.
    """
    cases = load_op(op).cases(device, dtype)
    large = [case for case in cases if case.large]
    if names:
        selected = [
            case for case in cases if case.name in names or (case.large and ALL_LARGE in names)
        ]
    elif device.type == "cpu":
        selected = [
            case for case in large if case.name.startswith("mid") or case.name.endswith(ONE_RANK)
        ] or large[:1]
    else:
        selected = large
    parsed = [parse_shape(text) for text in shapes]
    if not parsed or not selected:
        return selected
    return [case for shape in parsed for case in _sweep(selected[0], shape)]


def _sweep(base: Case, shape: Mapping[str, tuple[int, ...]]) -> list[Case]:
    for letter in shape:
        if letter not in base.dims:
            known = ", ".join(base.dims)
            raise UserError(f"--shape {letter}=: {base.op} has no size {letter}; it has {known}")
    count = math.prod(len(sizes) for sizes in shape.values())
    if count > MAX_SWEEP:
        raise UserError(f"--shape: {count} combinations of sizes; {MAX_SWEEP} at most")
    cases = []
    for sizes in itertools.product(*shape.values()):
        given = dict(zip(shape, sizes, strict=True))
        name = ",".join(f"{letter}={size}" for letter, size in given.items())
        cases.append(dataclasses.replace(base, name=name, dims={**base.dims, **given}, large=True))
        _check_sizes(cases[-1])
    return cases


def _check_sizes(case: Case) -> None:
    """Check that sizes are compatible, by running the reference on tensors without values."""
    on_meta = dataclasses.replace(case, device=torch.device("meta"))
    try:
        positional, keywords = load_op(case.op).make_inputs(on_meta, Generator())
        outputs = load_backend(case.op, "reference").run(*positional, **keywords)
    except (AssertionError, ArithmeticError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"--shape {case.name}: {case.op} has no such sizes: {reason[:MAX_REASON]}"
        ) from None
    cost = load_op(case.op).cost(case)
    if not cost.flops or not all(output.numel() for output in as_tuple(outputs)):
        raise UserError(
            f"--shape {case.name}: leaves {case.op} nothing to compute, so nothing to time; use "
            "sizes above 0"
        )


def check_names(ops: Iterable[str], names: Iterable[str], device: torch.device) -> None:
    """Reject case names that none of the ops has.

    Raises:
        UserError: There is such a name.
    """
    known = {ALL_LARGE: None}
    for op in ops:
        spec = load_op(op)
        known |= {case.name: None for case in spec.cases(device, spec.dtypes[0])}
    for name in names:
        if name not in known:
            raise UserError(f"--case {name}: no such case; choose from {', '.join(known)}")


def seconds_needed(case: Case, roofline: Roofline) -> float:
    """Estimate the time to check and time a case with a few backends, from its floor."""
    return roofline.floor(load_op(case.op).cost(case)) * CALLS * SLOWDOWN


def too_long(case: Case, roofline: Roofline) -> str | None:
    """Return None, or why a case that was not named is skipped: it takes minutes."""
    seconds = seconds_needed(case, roofline)
    if seconds <= CASE_SECONDS:
        return None
    return f"would take about {seconds / 60:.0f} minutes; --case {case.name} times it all the same"


def too_large(case: Case, *, hot: bool = False) -> str | None:
    """Return None, or why a case does not fit in the free memory.

    Args:
        case: The case.
        hot: Its inputs stay in the cache, so a CPU needs no buffer of the cache's size.
    """
    need = load_op(case.op).cost(case).bytes * 8 // case.dtype.itemsize * FP64_TENSORS
    if case.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(case.device)
    else:
        free = memory().available
        need += 3 * probe_bytes()
        if not hot and need <= free < need + COLD_CACHES * last_level_cache():
            return (
                f"cold caches take {data_size(COLD_CACHES * last_level_cache())} more than "
                f"the {data_size(free)} that are free; --hot does without"
            )
    if need <= free:
        return None
    return f"needs about {data_size(need)} with its checks; {data_size(free)} are free"
