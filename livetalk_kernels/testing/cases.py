"""Selects the cases to test or time on this machine."""

from collections.abc import Iterable

import torch

from ..registry import backend_names, load_backend, load_op, op_names
from ..spec import Case


def runnable_cases(
    devices: Iterable[torch.device], *, large: bool = False
) -> list[tuple[Case, str]]:
    """List every representative case of every op, with each backend that supports it.

    Args:
        devices: Devices to run on.
        large: Select cases of real models' sizes instead of small ones.
    """
    pairs = []
    devices = list(devices)
    for op in op_names():
        spec = load_op(op)
        cases = [
            case
            for device in devices
            for dtype in spec.dtypes
            for case in spec.cases(device, dtype)
            if case.large == large
        ]
        for name in backend_names(op):
            supports = load_backend(op, name).supports
            pairs += [(case, name) for case in cases if supports(case) is None]
    return pairs
