"""Backend lookup for an op's public function, on every call.

Models bypass it: they bind their ops once (``livetalk_kernels.bind_ops``).
"""

import functools
from collections.abc import Callable
from typing import Any

import torch

from .config import KernelConfig
from .dispatch import pick
from .spec import Case
from .tuning import Tuning


def resolve_call(
    op: str, backend: str | None, device: torch.device, dtype: torch.dtype, /, **dims: int
) -> Callable[..., Any]:
    """Return the implementation for one call of an op, cached per device, dtype and sizes.

    Args:
        op: Name of the op.
        backend: The call's own choice; None defers to ``LIVETALK_BACKEND``, then ``auto``,
            which consults the file of ``LIVETALK_CONFIG`` first.
        device: Device of the tensors.
        dtype: Dtype of the activations, as in ``Case``.
        **dims: Sizes of the call, by the letters of the op's shape legend.

    Raises:
        UserError: The backend does not exist or cannot run the case.
    """
    config = KernelConfig.from_sources([] if backend is None else [f"{op}={backend}"])
    wanted, named = config.wanted(op)
    return _pick_cached(op, device, dtype, tuple(dims.items()), wanted, named, config.tuning)


@functools.lru_cache(maxsize=1024)
def _pick_cached(
    op: str,
    device: torch.device,
    dtype: torch.dtype,
    dims: tuple[tuple[str, int], ...],
    wanted: str,
    named: bool,
    tuning: Tuning | None,
) -> Callable[..., Any]:
    case = Case(op=op, device=device, dtype=dtype, dims=dict(dims))
    return pick(case, wanted, named=named, tuning=tuning).run
