"""Predicts what ``auto`` would choose on an absent GPU, and what libraries would change."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .backends import cutlass
from .backends.cpu import FOLDER
from .backends.libraries import INSTALLED, LIBRARIES, Libraries
from .config import KernelConfig
from .dispatch import Choice, resolve
from .gpus import Gpu
from .registry import op_names
from .spec import Case

CUDA, CUDNN = "13.0", "9.19"  # assumed for a torch built for CUDA, where this one is for CPUs
NEWEST = "999"  # newer than any release


@dataclass(frozen=True, kw_only=True)
class Change:
    """A choice of ``auto`` that one more (or newer) library would change.

    Attributes:
        library: Its name in `LIBRARIES`.
        install: Command that installs or upgrades it.
        op: The op affected.
        now: Backend that ``auto`` picks today.
        then: Backend that it would pick.
    """

    library: str
    install: str
    op: str
    now: str
    then: str


def suppositions(installed: Libraries = INSTALLED) -> dict[str, str]:
    """Return what must be assumed to ask about an absent GPU; all else is as installed.

    CUDA and cuDNN if this torch is for CPUs; and the compiled CUDA kernels, which load only on a
    machine with a GPU, if their file exists.
    """
    found: dict[str, str] = {}
    if not installed.find("cuda")[0]:
        found |= {"cuda": CUDA, "cudnn": CUDNN}
    library = FOLDER / "_C_cuda.so"
    if library.is_file() and not torch.cuda.is_available():
        found["cuda kernels"] = "built"
        with_cutlass = cutlass.OPERATOR.encode() in library.read_bytes()
        found["cutlass kernels"] = "built" if with_cutlass else ""
    return found


def choose(
    config: KernelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    gpu: Gpu | None = None,
    libraries: Libraries = INSTALLED,
) -> dict[str, Choice]:
    """Map each op to its backend at model build time, sizes unknown; arguments as in `Case`."""
    return {
        op: resolve(Case(op=op, device=device, dtype=dtype, gpu=gpu, libraries=libraries), config)
        for op in op_names()
    }


def changes(
    choices: Mapping[str, Choice],
    config: KernelConfig,
    *,
    device: torch.device,
    dtype: torch.dtype,
    gpu: Gpu | None = None,
    libraries: Libraries = INSTALLED,
) -> list[Change]:
    """List what each library alone, installed or upgraded, would change.

    Args:
        choices: The current choices.
        config: As in `choose`, like the others.
        device: Device type that the model would run on.
        dtype: Dtype of activations.
        gpu: The absent GPU.
        libraries: Installed libraries.
    """
    found = []
    for name, library in LIBRARIES.items():
        more = libraries.supposing({name: NEWEST})
        others = choose(config, device=device, dtype=dtype, gpu=gpu, libraries=more)
        found += [
            Change(library=name, install=library.install, op=op, now=now.name, then=others[op].name)
            for op, now in choices.items()
            if others[op].name != now.name
        ]
    return found
