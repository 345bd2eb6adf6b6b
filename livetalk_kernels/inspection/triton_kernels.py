"""Finds all Triton kernels that the ops launch at the model's shapes."""

import importlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..backends.reasons import HOPPER
from ..backends.triton_launch import INSTALL, Launch, interpreted
from ..errors import UserError
from ..gpus import Gpu
from ..outputs import new_file, write_text
from ..registry import OPS_PACKAGE, backend_names, load_backend, load_op
from ..spec import Case, as_tuple
from . import ptxas
from .compile import CompileError, Source, compile_source, specialise
from .report import Kernel
from .sass import read_cubin
from .tools import ToolError

BACKEND = "triton"


@dataclass
class Task:
    """One kernel to compile, for all cases that use it; or why there is none."""

    op: str
    cases: list[str] = field(default_factory=list)
    source: Source | None = None
    error: str = ""

    def __str__(self) -> str:
        """Format op, kernel and first case."""
        return f"{self.op}/{self.source.name} ({self.cases[0]})" if self.source else self.op


def tasks(
    ops: Sequence[str], dtype: torch.dtype, *, quick: bool = False, gpu: Gpu | None = None
) -> list[Task]:
    """Find what ops launch in their large cases, one task per distinct kernel.

    Args:
        ops: Names of ops; every backend with ``launches`` is considered.
        dtype: Dtype of the activations.
        quick: Only the kernels that each op's first suitable case launches.
        gpu: GPU to compile for; None for Hopper, even for what cannot run there.

    Raises:
        UserError: Triton is not installed, or is interpreting its kernels.
    """
    try:
        import triton  # noqa: F401
    except ImportError:
        raise UserError(f"inspect: Triton is not installed; {INSTALL}") from None
    if interpreted():
        raise UserError("inspect: TRITON_INTERPRET is set, so nothing compiles; unset it")
    found = [
        task
        for op in ops
        for name in backend_names(op)
        if load_backend(op, name).launches is not None
        for task in _tasks_of_op(op, name, dtype, gpu)
    ]
    if quick:
        names = [(task.op, task.source and task.source.name) for task in found]
        found = [task for index, task in enumerate(found) if names.index(names[index]) == index]
    return found


def refusals(ops: Sequence[str], dtype: torch.dtype, gpu: Gpu) -> Iterator[str]:
    """Yield what the ops' Triton backends cannot run on a GPU: lines with cases and reason."""
    for op in ops:
        for name in backend_names(op):
            backend = load_backend(op, name)
            if backend.launches is None:
                continue
            reasons: dict[str, list[str]] = {}
            for case in _large_cases(op, dtype):
                reason = backend.supports(_on(case, gpu))
                if reason is not None:
                    reasons.setdefault(reason, []).append(case.name)
            for reason, cases in reasons.items():
                yield f"{op} by {name}: left out ({', '.join(cases)}): {reason}"


def _large_cases(op: str, dtype: torch.dtype) -> list[Case]:
    return [case for case in load_op(op).cases(torch.device("meta"), dtype) if case.large]


def _on(case: Case, gpu: Gpu) -> Case:
    return replace(case, device=torch.device("cuda"), gpu=gpu)


def launches_of_op(
    op: str, name: str, dtype: torch.dtype, gpu: Gpu | None = None
) -> Iterator[tuple[str, list[Launch]]]:
    """Yield each large case's name, and what one of the op's Triton backends launches for it.

    Args:
        op: Name of the op.
        name: Name of the backend.
        dtype: Dtype of the activations.
        gpu: GPU; cases that cannot run on it are omitted.
    """
    spec = load_op(op)
    contract = importlib.import_module(f"{OPS_PACKAGE}.{op}")
    backend = load_backend(op, name)
    assert backend.launches is not None
    for case in _large_cases(op, dtype):
        if gpu is None or backend.supports(_on(case, gpu)) is None:
            arguments, keywords = spec.make_inputs(case, torch.Generator())
            outputs = as_tuple(contract.empty_outputs(*arguments, **keywords))
            yield case.name, backend.launches(outputs, *arguments, **keywords)


def _tasks_of_op(op: str, name: str, dtype: torch.dtype, gpu: Gpu | None) -> list[Task]:
    capability = HOPPER if gpu is None else gpu.capability
    found: dict[str, Task] = {}
    try:
        for case, launches in launches_of_op(op, name, dtype, gpu):
            specialised = (specialise(launch, capability) for launch in launches)
            sources = {source.key: source for source in specialised}
            versions = Counter[str]()
            for key, source in sources.items():
                versions[source.name] += 1
                number = versions[source.name]
                task = found.setdefault(key, Task(op=op, source=source))
                task.cases.append(case if number == 1 else f"{case}#{number}")
    except Exception as error:  # one op's fault; the report continues
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return [*found.values(), Task(op=op, error=f"{type(error).__name__}: {reason}")]
    return list(found.values())


def inspect_task(task: Task, keep: Path | None = None) -> Kernel:
    """Compile a task's kernel and read its code.

    Args:
        task: One of ``tasks``.
        keep: Existing folder for PTX, Triton's IR, machine code and disassembly.

    Raises:
        UserError: cuobjdump is not installed.
    """
    if task.source is None:
        return Kernel(op=task.op, backend=BACKEND, name="", error=task.error)
    kernel = Kernel(
        op=task.op,
        backend=BACKEND,
        name=task.source.name,
        cases=tuple(task.cases),
        capability=task.source.capability,
    )
    try:
        compiled = compile_source(task.source)
        with tempfile.TemporaryDirectory() as folder:
            cubin = Path(folder, "kernel.cubin")
            cubin.write_bytes(compiled.cubin)
            codes, sass = read_cubin(cubin)
    except (CompileError, ToolError) as error:
        return replace(kernel, error=str(error))
    if keep is not None:
        stem = f"{task.op}.{kernel.name}.{task.cases[0]}".replace("#", "-")
        for kind, text in {"ttgir": compiled.ttgir, "ptx": compiled.ptx, "sass": sass}.items():
            write_text(keep / f"{stem}.{kind}", text)
        with new_file(keep / f"{stem}.cubin") as file:
            file.write(compiled.cubin)
    log = ptxas.parse(compiled.log)
    return replace(
        kernel,
        code=codes[compiled.entry],
        stages=task.source.options["num_stages"],
        constants=task.source.constants(),
        dynamic_shared=compiled.shared,
        spills=log.spilled(),
        pointers=task.source.pointers(),
        dots=compiled.dots(),
        warnings=log.warnings,
        seconds=compiled.seconds,
    )
