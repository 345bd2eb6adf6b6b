"""Saves a report, and finds regressions against it."""

from collections.abc import Iterator
from pathlib import Path

from ..errors import UserError
from ..inputs import build, is_folder, read_json
from ..outputs import write_json
from .report import TARGET, Kernel, Report, as_json
from .sass import TENSOR_CORES

SHARE_SLACK = 0.05  # tolerance for scalars, which may be loaded in several ways


def baseline_file(path: Path, report: Report) -> Path:
    """Resolve a folder to the file for this Triton version and target."""
    if not is_folder(path):
        return path
    version = report.versions.get("triton")
    if version is None:
        raise UserError(f"{path}: name the file; without Triton it has no version to go by")
    of_gpu = "" if report.target == TARGET else f"_{report.target}"
    return path / f"inspect_triton{'.'.join(version.split('.')[:2])}{of_gpu}.json"


def save(report: Report, path: Path) -> Path:
    """Write a report to a file or its folder; return the file."""
    file = baseline_file(path, report)
    write_json(file, as_json(report))
    return file


def load(path: Path, report: Report) -> Report:
    """Read the report to compare a new one with; ``path`` is the file or its folder.

    Raises:
        UserError: It does not exist, or has another dtype or target GPU.
    """
    file = baseline_file(path, report)
    make = "make it with `livetalk inspect --save`"
    value = read_json(file, "report", cure=make, missing=make)
    try:
        before = build(Report, value)
    except ValueError as error:
        raise UserError(
            f"{file}: is not a report of `livetalk inspect --save`: {error}; {make}"
        ) from None
    if before.dtype != report.dtype:
        raise UserError(f"{file}: is of {before.dtype:.40}; compare with --dtype of it")
    if before.target != report.target:
        raise UserError(f"{file}: is for {before.target:.40}; compare with the --gpu of it")
    return before


def regressions(before: Report, after: Report) -> list[str]:
    """List regressions, one line per kernel and aspect.

    Kernels that only one of the reports contains are not compared.
    """
    known = {key: kernel for kernel in before.kernels for key in _keys(kernel)}
    lines = []
    for kernel in after.kernels:
        found = (known[key] for key in _keys(kernel) if key in known)
        for old in {id(old): old for old in found}.values():
            lines += [f"{kernel}: {text}" for text in _worse(old, kernel)]
    return list(dict.fromkeys(lines))


def _keys(kernel: Kernel) -> Iterator[tuple[str, ...]]:
    for case in kernel.cases or ("",):
        yield kernel.op, kernel.backend, kernel.name, case


def _worse(old: Kernel, new: Kernel) -> Iterator[str]:
    if old.code is None:
        return
    if new.code is None:
        yield f"no longer compiles: {new.error}"
        return
    before, after = old.code, new.code
    if sum(new.spills or ()) > sum(old.spills or ()):
        yield f"spills {sum(new.spills or ())} bytes, {sum(old.spills or ())} before"
    if after.local > before.local:
        yield f"{after.local} accesses of local memory, {before.local} before"
    for what, was, now in (
        ("barriers of all warps in a step of main loops", before.barriers, after.barriers),
        ("loads of a last block that nothing hides", before.exposed, after.exposed),
    ):
        if now > was:
            yield f"{now} {what}, {was} before"
    for name in TENSOR_CORES:
        if name in before.tensor_cores and name not in after.tensor_cores:
            yield f"no {name} any more"
    if before.tma and not after.tma:
        yield "no TMA any more"
    for what, widest, width in (
        ("loads", before.widest_load, after.widest_load),
        ("stores", before.widest_store, after.widest_store),
    ):
        if _bits(width) < min(_bits(widest), 128):
            yield f"{what} {width} bits at most, {widest} before"
    wide, share = before.wide_share, after.wide_share
    if wide is not None and share is not None and share < wide - SHARE_SLACK:
        yield f"{share:.0%} of the bytes in 128-bit accesses, {wide:.0%} before"
    if old.warps is not None and new.warps is not None and new.warps < old.warps:
        yield f"{new.warps} warps per SM, {old.warps} before"
    known = {_number(text) for text in old.warnings}
    yield from (f"compiler: {text}" for text in new.warnings if _number(text) not in known)


def _bits(widest: str) -> int:
    """Rank a width for comparison; TMA moves whole tiles, and no accesses at all are best."""
    return int(widest) if widest.isdecimal() else 1024


def _number(warning: str) -> str:
    """Return what identifies a warning: its number, if it has one; else its text."""
    return warning.split(maxsplit=1)[0] if warning.startswith("(C") else warning
