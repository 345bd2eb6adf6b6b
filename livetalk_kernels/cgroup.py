"""CPU and memory limits that containers, batch systems or systemd set through Linux control groups.

A limit applies to all descendants, so the smallest among a group's ancestors counts. Version 1 has
a tree of groups per controller, version 2 a single tree; hybrid systems have both.
``/proc/self/cgroup`` names our group, ``/proc/self/mountinfo`` where its tree is mounted.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

UNLIMITED = 1 << 60
"""Bytes above which a memory limit means "none": version 1 writes a number near 2**63."""
_CACHE = ("active_file", "inactive_file")  # pages that the kernel reclaims when needed


@dataclass(frozen=True, kw_only=True)
class CgroupLimits:
    """Limits on this process; None where no group sets one.

    Attributes:
        cpus: CPUs that all processes of the group may keep busy together, such as 0.5.
        memory: Bytes that all processes of the group may hold together.
        memory_left: Bytes of it that are still free; the page cache counts as free.
    """

    cpus: float | None = None
    memory: int | None = None
    memory_left: int | None = None


def cgroup_limits(root: Path = Path("/")) -> CgroupLimits:
    """Read the limits of this process's own groups and all their ancestors.

    Args:
        root: Folder that holds ``proc`` and the mount points; tests pass their own.

    Returns:
        The smallest limits; all None if there are no groups or they cannot be read.
    """
    cpus = [limit for folder in _groups(root, "cpu") if (limit := _cpus(folder)) is not None]
    memory = [found for folder in _groups(root, "memory") if (found := _memory(folder)) is not None]
    return CgroupLimits(
        cpus=min(cpus, default=None),
        memory=min((limit for limit, _ in memory), default=None),
        memory_left=min((max(0, limit - held) for limit, held in memory), default=None),
    )


@dataclass(frozen=True, kw_only=True)
class _Mount:
    """A mounted tree of groups: mount point, top group, and its v1 controllers (v2: none)."""

    point: PurePosixPath
    top: PurePosixPath
    controllers: frozenset[str]


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of our group and its ancestors in every tree that may have a controller."""
    own: dict[str, PurePosixPath] = {}  # controller -> our group; empty: version 2
    for entry in _lines(root / "proc/self/cgroup"):
        _, names, path = [*entry.split(":", 2), "", ""][:3]
        own |= dict.fromkeys(names.split(","), PurePosixPath(path or "/"))
    mounts = list(_mounts(root))
    for name in (controller, ""):
        group = own.get(name)
        fitting = [m for m in mounts if (name in m.controllers if name else not m.controllers)]
        if group is None or not fitting:
            continue
        # A mount of an unrelated subtree says nothing about us. In a cgroup namespace paths may not
        # match at all; the first mount is then our own group.
        holding = [m for m in fitting if group.is_relative_to(m.top) and ".." not in group.parts]
        for mount in holding or fitting[:1]:
            below = group.relative_to(mount.top) if holding else PurePosixPath()
            top = root / mount.point.relative_to("/")
            folder = top / below
            yield folder
            yield from (parent for parent in folder.parents if parent.is_relative_to(top))


def _mounts(root: Path) -> Iterator[_Mount]:
    for line in _lines(root / "proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        kind, _, options = [*rest.split(" ", 2), "", ""][:3]
        if kind not in ("cgroup", "cgroup2"):
            continue
        top, point = (_unescape(field) for field in fields.split(" ")[3:5])
        yield _Mount(
            point=PurePosixPath(point),
            top=PurePosixPath(top),
            controllers=frozenset(options.split(",") if kind == "cgroup" else ()),
        )


def _cpus(folder: Path) -> float | None:
    """Return the CPU quota of one group, in CPUs."""
    quota, period = [*_words(folder / "cpu.max"), "", ""][:2]
    if not quota:
        quota, period = (
            " ".join(_words(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period")
        )
    if not (quota.isdecimal() and period.isdecimal() and int(quota) and int(period)):
        return None  # "max", -1, or no such file
    return int(quota) / int(period)


def _memory(folder: Path) -> tuple[int, int] | None:
    """Return (limit, usage without page cache) of one group in bytes; None without a limit."""
    stat = dict(line.split(" ", 1) for line in _lines(folder / "memory.stat") if " " in line)
    limits = [_bytes(folder / name) for name in ("memory.max", "memory.high")]
    held, prefix = _bytes(folder / "memory.current"), ""
    if held is None:
        limits = [_bytes(folder / "memory.limit_in_bytes")]
        held, prefix = _bytes(folder / "memory.usage_in_bytes"), "total_"
    limit = min((limit for limit in limits if limit is not None), default=UNLIMITED)
    if limit >= UNLIMITED:
        return None
    cache = [stat.get(prefix + name, "") for name in _CACHE]
    reclaimable = sum(int(text) for text in cache if text.isdecimal())
    return limit, max(0, (held or 0) - reclaimable)


def _bytes(file: Path) -> int | None:
    text = " ".join(_words(file))
    return int(text) if text.isdecimal() else None


def _words(file: Path) -> list[str]:
    return " ".join(_lines(file)).split()


def _lines(file: Path) -> list[str]:
    """Return the lines of a file; none if it cannot be read, as in a container that hides it."""
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []


def _unescape(field: str) -> str:
    r"""Decode a path of ``mountinfo``, in which ``\040`` is a space."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)
