"""Compiles a Triton launch for an absent GPU, as Triton's JIT would at launch."""

import contextlib
import io
import json
import re
import time
from dataclasses import dataclass
from typing import Any

from ..backends.reasons import HOPPER
from ..backends.triton_launch import Launch
from ..inputs import build, read_json

_NOTE = "livetalk_inspect.json"  # in Triton's cache, next to the kernel: ptxas' log, seconds
_DOT = re.compile(r"\btt\.dot\b.*: tensor<(?:\d+x)*(\w+)> \*")


class CompileError(RuntimeError):
    """A kernel does not compile; one line says why."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A launch, specialised for its arguments.

    Attributes:
        name: Name of the kernel.
        key: Equal for launches that share a compiled kernel.
        ast: Triton's ``ASTSource``.
        options: Options for Triton's compiler.
        capability: Compute capability of the GPU.
    """

    name: str
    key: str
    ast: Any
    options: dict[str, Any]
    capability: tuple[int, int]

    def pointers(self) -> tuple[str, ...]:
        """Return the dtypes of pointer arguments, in Triton's names."""
        types = {kind[1:] for kind in self.ast.signature.values() if kind.startswith("*")}
        return tuple(sorted(types))

    def constants(self) -> dict[str, int]:
        """Return its numeric constants, such as tile sizes."""
        names = self.ast.fn.arg_names
        values = {names[key[0]]: value for key, value in self.ast.constants.items()}
        return {name: value for name, value in values.items() if type(value) is int}


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A compiled kernel.

    Attributes:
        entry: Its name in the machine code.
        cubin: The machine code.
        ttir: Triton's IR as written.
        ttgir: Triton's IR for the GPU.
        ptx: The input of ptxas.
        shared: Bytes of dynamic shared memory per block.
        log: The output of ptxas.
        seconds: Compile time, from when it was not yet in Triton's cache.
    """

    entry: str
    cubin: bytes
    ttir: str
    ttgir: str
    ptx: str
    shared: int
    log: str
    seconds: float

    def dots(self) -> tuple[str, ...]:
        """Return the dtypes of the left operands of its ``tl.dot``, named as in Triton's IR."""
        return tuple(sorted(set(_DOT.findall(self.ttir))))


@dataclass(frozen=True, kw_only=True)
class _Note:
    """What is stored next to a kernel in Triton's cache."""

    log: str
    seconds: float


def specialise(launch: Launch, capability: tuple[int, int] = HOPPER) -> Source:
    """Find what the JIT would compile: which arguments are constants, divisible by 16, 64-bit.

    Triton's own code decides; a tensor on the ``meta`` device counts as aligned, like torch's
    memory.

    Args:
        launch: The launch.
        capability: Compute capability of the GPU.
    """
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    kernel = launch.kernel
    backend = make_backend(_target(capability))
    keywords = launch.compiler_options()
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialisation, rest = bind(**launch.arguments, **keywords)
    options, signature, constants, attributes = kernel._pack_args(
        backend, keywords, bound, specialisation, rest
    )
    name = kernel.fn.__name__
    return Source(
        name=name,
        key=repr((kernel.fn.__module__, name, signature, constants, attributes, keywords)),
        ast=ASTSource(kernel, signature, constants, attributes),
        options=dict(options.__dict__),
        capability=capability,
    )


def compile_source(source: Source) -> Compiled:
    """Compile for its GPU, unless Triton's cache already has the result.

    Raises:
        CompileError: It does not compile.
    """
    try:
        return _compile(source)
    except Exception as error:  # compilers fail in many ways, and the report continues
        raise CompileError(_reason(error)) from error


def ptxas_path(capability: tuple[int, int] = HOPPER) -> str:
    """Return the path of the ptxas that Triton uses for a GPU."""
    from triton.backends.nvidia.compiler import get_ptxas

    return str(get_ptxas(_number(capability)).path)


def _compile(source: Source) -> Compiled:
    import triton
    from triton import knobs
    from triton.runtime.cache import get_cache_manager

    target = _target(source.capability)
    log = io.StringIO()  # Triton prints ptxas' messages there, and the whole PTX if it fails
    with (
        knobs.nvidia.scope(),
        knobs.compilation.scope(),
        contextlib.redirect_stdout(log),
    ):
        knobs.nvidia.dump_ptxas_log = True
        start = time.monotonic()
        kernel = triton.compile(source.ast, target=target, options=source.options)
        cache = get_cache_manager(kernel.hash)
        note = cache.get_file(_NOTE)
        if note is None and not log.getvalue():  # cached by a run that did not save the log
            knobs.compilation.always_compile = True
            start = time.monotonic()
            kernel = triton.compile(source.ast, target=target, options=source.options)
        if note is None:
            text = {"log": log.getvalue(), "seconds": round(time.monotonic() - start, 2)}
            note = cache.put(json.dumps(text), _NOTE, binary=False)
    kept = build(_Note, read_json(note, "note", cure="remove it from Triton's cache"), str(note))
    return Compiled(
        entry=kernel.metadata.name,
        shared=kernel.metadata.shared,
        log=kept.log,
        seconds=kept.seconds,
        **{kind: kernel.asm[kind] for kind in ("cubin", "ttir", "ttgir", "ptx")},
    )


def _reason(error: BaseException) -> str:
    """Reduce a compiler's error to one line."""
    while error.__cause__ is not None:  # Triton wraps the error of the line in question
        error = error.__cause__
    text = str(getattr(error, "error_message", None) or error) or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    ptxas = [line for line in lines if re.match(r"ptxas\S* (error|fatal) ", line)]
    return " ".join((ptxas or lines)[0].split())


def target_of(capability: tuple[int, int]) -> str:
    """Name Triton's target: ``sm_89``, or ``sm_90a`` with that generation's own features."""
    return f"sm_{_number(capability)}{'a' if capability >= HOPPER else ''}"


def _number(capability: tuple[int, int]) -> int:
    return 10 * capability[0] + capability[1]


def _target(capability: tuple[int, int]) -> Any:
    from triton.backends.compiler import GPUTarget

    return GPUTarget("cuda", _number(capability), 32)
