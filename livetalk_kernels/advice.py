"""What ``auto`` would choose on a GPU that is not here, and what installing more would change."""

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

CUDA, CUDNN = "13.0", "9.19"  # what is supposed of a torch for CUDA, where this one is for CPUs
NEWEST = "999"  # newer than any release


@dataclass(frozen=True, kw_only=True)
class Change:
    """Another choice of ``auto``, were a library there.

    Attributes:
        library: Its name in `LIBRARIES`.
        install: What installs it, or a newer one.
        op: The op that it changes.
        now: Backend that ``auto`` takes for it.
        then: Backend that it would take.
    """

    library: str
    install: str
    op: str
    now: str
    then: str


def suppositions(installed: Libraries = INSTALLED) -> dict[str, str]:
    """What has to be supposed to ask about a GPU that is not here; else all is as installed.

    CUDA and cuDNN where this torch is for CPUs; and the compiled kernels, which load beside a GPU
    alone, where their file is there.
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
    """Op -> its backend, when a model is built and sizes are not known; as of `Case`."""
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
    """What each library alone would change, installed or in its newest release.

    Args:
        choices: What is chosen as it is.
        config: As of `choose`, like the others.
        device: Where.
        dtype: Dtype of activations.
        gpu: GPU that is not here.
        libraries: What is installed.
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
