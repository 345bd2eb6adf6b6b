"""Compiles or reads all kernels of some ops, and reports on them."""

import importlib.metadata
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..backends.reasons import HOPPER
from ..errors import UserError
from ..gpus import Gpu
from ..machine import commit
from ..precision import dtype_name
from ..registry import op_names
from . import cuda_kernels, triton_kernels
from .compile import ptxas_path, target_of
from .report import Kernel, Report
from .tools import tool_version

BACKENDS = (triton_kernels.BACKEND, cuda_kernels.BACKEND)
Progress = Callable[[str], None]
"""Called with a line about the next step."""


def collect(
    ops: Sequence[str],
    *,
    dtype: torch.dtype,
    backends: Sequence[str] = BACKENDS,
    quick: bool = False,
    gpu: Gpu | None = None,
    keep: Path | None = None,
    progress: Progress = lambda line: None,
) -> Report:
    """Report on all kernels of some ops.

    Args:
        ops: Names of ops; empty for all.
        dtype: Dtype of the activations that Triton kernels are compiled for.
        backends: Of ``BACKENDS``.
        quick: Compile each Triton kernel for only one of its shapes.
        gpu: GPU to compile for, as far as kernels can run there; None for Hopper.
        keep: Folder for PTX and disassembly, created if needed.
        progress: Called with the next step.

    Raises:
        UserError: An op does not exist; Triton or cuobjdump is missing; Triton is interpreting.
    """
    if unknown := sorted(set(ops) - set(op_names())):
        raise UserError(f"no op {unknown[0]}; there are {', '.join(op_names())}")
    ops = ops or op_names()
    if keep is not None:
        try:
            keep.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{keep}: cannot be made: {error.strerror}") from None
    capability = HOPPER if gpu is None else gpu.capability
    kernels: list[Kernel] = []
    versions: dict[str, str] = {}
    notes: list[str] = []
    if triton_kernels.BACKEND in backends:
        tasks = triton_kernels.tasks(ops, dtype, quick=quick, gpu=gpu)
        versions["triton"] = importlib.metadata.version("triton")
        versions["ptxas"] = tool_version(ptxas_path(capability))
        if gpu is not None:
            notes += triton_kernels.refusals(ops, dtype, gpu)
        for number, task in enumerate(tasks, 1):
            progress(f"{number}/{len(tasks)} {task}")
            kernels.append(triton_kernels.inspect_task(task, keep))
    if cuda_kernels.BACKEND in backends and capability != HOPPER:
        notes.append("cuda: left out; they are read for Hopper alone")
    elif cuda_kernels.BACKEND in backends:
        kernels += _cuda(ops, keep, versions, notes, progress)
    return Report(
        dtype=dtype_name(dtype),
        date=time.strftime("%Y-%m-%d"),
        commit=commit(),
        versions=versions,
        kernels=tuple(kernels),
        notes=tuple(notes),
        target=target_of(capability),
    )


def _cuda(
    ops: Sequence[str],
    keep: Path | None,
    versions: dict[str, str],
    notes: list[str],
    progress: Progress,
) -> list[Kernel]:
    if cuda_kernels.EXTENSION.is_file():
        progress(cuda_kernels.EXTENSION.name)
        notes.append(f"cuda: as built in {cuda_kernels.EXTENSION.name}, without ptxas' messages")
        return cuda_kernels.extension_kernels(ops, keep)
    nvcc = shutil.which("nvcc")
    if nvcc is None or not cuda_kernels.sources():
        notes.append("cuda: left out; `make cuda` builds the kernels, and needs nvcc")
        return []
    versions["nvcc"] = tool_version(nvcc)
    kernels = []
    for source in cuda_kernels.sources():
        progress(source.name)
        kernels += cuda_kernels.source_kernels(source, ops, keep)
    return kernels
