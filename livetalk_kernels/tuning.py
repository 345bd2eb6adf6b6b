"""Results of ``livetalk tune``: the fastest backend per op and shape on known machines.

A file holds one entry per machine. An entry applies if its key matches the current machine:
hardware, driver and versions; else it is stale, and `Tuning.advise` says why. A configuration is
just a backend's name today; ``Choice.options`` leaves room for more.

Lookup: among the choices for the op and dtype, those nearest to the known sizes, by the sum of
abs(log(size / size)) over the letters that both have; equal sizes are at distance 0. Few sizes are
known when a model is built, so several choices may be equally near. Of the backends measured at all
of them, the one with the least total time of all calls wins.
"""

import functools
import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import torch

from .backends import cpu
from .backends.libraries import INSTALLED
from .cpuinfo import cpu_name
from .errors import UserError
from .inputs import Count, Range, build, read_json
from .machine import gpu_entry, version
from .precision import dtype_name
from .registry import backend_names, op_names
from .spec import Case

FORMAT, FORMAT_VERSION = "livetalk-tuning", 1
FOLDER = Path(__file__).resolve().parent
AGAIN = "run 'livetalk tune' again"
GPU_DISTRIBUTIONS = (
    "flash-attn",
    "flash-attn-3",
    "flashinfer-python",
    "nvidia-cudnn-frontend",
    "quack-kernels",
)
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TuningKey:
    """What timings depend on.

    Attributes:
        device: ``cpu`` or ``cuda``.
        name: Model name of the CPU or the GPU.
        instructions: Instruction sets of our kernels and torch's; a GPU's compute capability.
        threads: CPU threads; 0 on a GPU.
        driver: The GPU's driver; empty on a CPU.
        versions: Of ``livetalk``, ``torch`` and ``triton`` (empty: not installed); on a GPU also of
            ``cuda``, ``cudnn`` and the attention and matrix-product libraries; and of our
            ``kernels``: a digest of their sources and libraries, which also distinguishes states
            of a working tree.
    """

    device: str
    name: str
    instructions: str
    threads: Count
    driver: str
    versions: Mapping[str, str]

    @classmethod
    def of(cls, device: torch.device) -> "TuningKey":
        """Compute the key of this machine in its current state."""
        return _key(device, 0 if device.type == "cuda" else torch.get_num_threads())

    def difference(self, here: "TuningKey") -> str | None:
        """Describe how this key differs from ``here``; None if it does not."""
        then, now = self._flat(), here._flat()
        parts = [
            f"{name} was {then.get(name) or 'absent'}, is {now.get(name) or 'absent'}"
            for name in dict.fromkeys([*then, *now])
            if then.get(name) != now.get(name)
        ]
        return ", ".join(parts) or None

    def same_hardware(self, other: "TuningKey") -> bool:
        """Return whether the keys differ in driver and versions at most."""
        names = ("device", "name", "instructions", "threads")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def _flat(self) -> dict[str, str]:
        facts = {name: str(value) for name, value in asdict(self).items() if name != "versions"}
        return facts | dict(self.versions)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The fastest backend for one shape.

    Attributes:
        op: Name of the op.
        dtype: As in ``Case``, such as ``bfloat16``.
        dims: Sizes, as in ``Case``.
        variant: The rest of the case: ``Case.options``.
        calls: Relative frequency of this call among the choices.
        backend: The fastest correct one.
        options: Options of the backend; unused today.
        p50: Every timed backend -> median seconds per call.
    """

    op: str
    dtype: str
    dims: Mapping[str, Count]
    variant: Mapping[str, Any] = field(default_factory=dict)
    calls: Annotated[int, Range(1, 2**53)] = 1
    backend: str
    options: Mapping[str, Any] = field(default_factory=dict)
    p50: Mapping[str, float]

    def __post_init__(self) -> None:
        """Reject impossible values."""
        if self.backend not in self.p50:
            raise ValueError(f"{self.backend} was not timed")
        for name, seconds in self.p50.items():
            if not 0 < seconds < math.inf:
                raise ValueError(f"p50 of {name} is {seconds!r:.40}")

    @property
    def shape(self) -> str:
        """What choices for the same shape have in common."""
        return json.dumps([self.op, self.dtype, self.dims, self.variant], sort_keys=True)

    def distance(self, dims: Mapping[str, int]) -> float:
        """Compute the distance of its sizes from the known ones: sum of abs(log(size / size))."""
        letters = dims.keys() & self.dims.keys()
        if "d" not in self.dims:  # H counts heads where there is d; else rows, which are unknown
            letters -= {"H"}
        pairs = ((max(dims[letter], 1), max(self.dims[letter], 1)) for letter in letters)
        return round(math.fsum(abs(math.log(a / b)) for a, b in pairs), 9)


@dataclass(frozen=True, kw_only=True)
class MachineEntry:
    """All results from one machine.

    Attributes:
        key: The machine.
        complete: False if the run was interrupted, or its budget did not last for all shapes.
        date: Date of the run.
        commit: Commit of livetalk; empty if unknown.
        choices: One per op, dtype, sizes and variant.
    """

    key: TuningKey
    complete: bool
    date: str
    commit: str
    choices: tuple[Choice, ...]

    def unknown_backend(self) -> str | None:
        """Name an op or a timed backend that does not exist here; None if all do."""
        ops = op_names()
        for choice in self.choices:
            if choice.op not in ops:
                return f"there is no op {choice.op} here"
            for name in choice.p50.keys() - set(backend_names(choice.op)):
                return f"{choice.op} has no backend {name} here"
        return None


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuning:
    """A tuning file.

    Attributes:
        path: The file, as it was named.
        machines: One entry per machine.
    """

    path: str
    machines: tuple[MachineEntry, ...] = ()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file.

        Raises:
            UserError: It is missing, damaged, or of another format.
        """
        make = f"make it by 'livetalk tune --output {path}'"
        value = read_json(path, "tuning", cure=AGAIN, missing=make)
        if value.get("format") != FORMAT:
            raise UserError(f"{path}: is not a tuning file; name one that 'livetalk tune' wrote")
        if value.get("version") != FORMAT_VERSION:
            raise UserError(
                f"{path}: is a tuning file of version {value.get('version')!r:.40}, but only "
                f"{FORMAT_VERSION} is understood; {AGAIN}"
            )
        try:
            machines = build(_Machines, value).machines
        except ValueError as error:
            raise UserError(f"{path}: is damaged: {error}; remove it and {AGAIN}") from None
        return cls(path=str(path), machines=machines)

    def as_json(self) -> dict[str, Any]:
        """Convert to plain values for the file."""
        machines = [asdict(entry) for entry in self.machines]
        return {"format": FORMAT, "version": FORMAT_VERSION, "machines": machines}

    def updated(self, entry: MachineEntry) -> "Tuning":
        """Return a copy with a machine's newer entry.

        Results with the same key for other shapes are kept, and so are other machines; results of
        the same hardware with another driver or version are dropped.
        """
        others = [old for old in self.machines if not old.key.same_hardware(entry.key)]
        same = [old for old in self.machines if old.key == entry.key]
        choices = {choice.shape: choice for old in (*same, entry) for choice in old.choices}
        merged = MachineEntry(
            key=entry.key,
            complete=entry.complete,
            date=entry.date,
            commit=entry.commit,
            choices=tuple(choices.values()),
        )
        return Tuning(path=self.path, machines=(*others, merged))

    def entry(self, device: torch.device) -> MachineEntry | str:
        """Return the entry of this machine, or why none applies, in a few words."""
        here = TuningKey.of(device)
        entries = [entry for entry in self.machines if entry.key.device == device.type]
        if not entries:
            return f"it was not made on {device.type}"
        entries.sort(key=lambda entry: (entry.key != here, not entry.key.same_hardware(here)))
        reason = entries[0].key.difference(here) or entries[0].unknown_backend()
        return entries[0] if reason is None else reason

    def advise(self, case: Case) -> tuple[str | None, str]:
        """Find the fastest backend for a case.

        Args:
            case: The problem; sizes that are not known yet may be absent.

        Returns:
            Name of the backend, or None; and why. A stale file is warned of once.
        """
        entry = self.entry(case.device)
        if isinstance(entry, str):
            _warn_once(f"{self.path}: is stale, so it is not used: {entry}; {AGAIN}")
            return None, f"{self.path} is stale: {entry}"
        dtype = dtype_name(case.dtype)
        own = [c for c in entry.choices if c.op == case.op and c.dtype == dtype]
        if not own:
            return None, f"{self.path} has nothing for {dtype}"
        distances = [choice.distance(case.dims) for choice in own]
        near = [c for c, distance in zip(own, distances, strict=True) if distance == min(distances)]
        return self._fastest(near, exact=min(distances) == 0)

    def _fastest(self, near: Sequence[Choice], *, exact: bool) -> tuple[str | None, str]:
        everywhere = set.intersection(*(set(choice.p50) for choice in near))
        if not everywhere:
            return None, f"{self.path}: no backend was timed at all of {len(near)} shapes"
        totals = {name: sum(c.calls * c.p50[name] for c in near) for name in everywhere}
        best, *others = sorted(totals, key=lambda name: (totals[name], name))
        why = f"{totals[others[0]] / totals[best]:.1f}x the next" if others else "no other"
        if not exact:
            why += ", at the nearest sizes " + " ".join(f"{k}={v}" for k, v in near[0].dims.items())
        return best, f"tuned: {self.path} ({why})"


@dataclass(frozen=True, kw_only=True)
class _Machines:
    """The contents of a file apart from its format."""

    machines: tuple[MachineEntry, ...]


@functools.cache
def _key(device: torch.device, threads: int) -> TuningKey:
    """Compute the key of this machine; the GPU part is untested."""
    names = ("livetalk", "torch", "triton")
    versions = {name: version(name) or "" for name in names} | {"kernels": _digest()}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        name, instructions = torch.cuda.get_device_name(device), f"sm_{major}{minor}"
        driver = (gpu_entry(device) or {"driver": ""})["driver"]
        versions |= {name: INSTALLED.find(name)[0] for name in ("cuda", "cudnn")}
        versions |= {name: version(name) or "" for name in GPU_DISTRIBUTIONS}
    else:
        own = "none" if cpu.missing() else cpu.isa()
        name, instructions = cpu_name(), f"{own}, torch {torch.backends.cpu.get_cpu_capability()}"
        driver = ""
    return TuningKey(
        device=device.type,
        name=name,
        instructions=instructions,
        threads=threads,
        driver=driver,
        versions=versions,
    )


@functools.cache
def _digest() -> str:
    """Compute a short digest of the ops' sources and of the compiled libraries."""
    files = [
        *FOLDER.glob("*.py"),
        *FOLDER.glob("backends/*.py"),
        *FOLDER.glob("ops/**/*.py"),
        *FOLDER.glob("_C*.so"),
    ]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(str(file.relative_to(FOLDER)).encode() + b"\0")
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
