"""``livetalk doctor``: report on this machine, a checkpoint, and the memory a model takes."""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from livetalk_kernels.errors import UserError
from livetalk_kernels.lines import one_line

from ..completeness import CheckpointReport, inspect_checkpoint
from ..environment import Library, environment, libraries
from ..weights.manifest import manifest_files, read_manifest, verify_manifest, write_manifest
from .common import (
    REPLACED,
    Subparsers,
    add_checkpoint_options,
    add_command,
    add_json_option,
    check_file,
    console,
    escape,
    plural,
    print_json,
)
from .doctor_tables import print_checkpoint, print_environment
from .memory import add_memory_options, check_memory_options, run_memory

EXAMPLE = """\
livetalk doctor --checkpoint SoulX-FlashTalk-14B \\
    --audio-encoder chinese-wav2vec2-base
livetalk doctor --memory --preset 14b --precision fp8 --size 768x448"""


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's options."""
    parser = add_command(
        subparsers,
        "doctor",
        "Show what this machine offers and whether a checkpoint is complete, or how much memory a "
        "model takes. Exit code 0: all is well, 1: something is missing or broken.",
        EXAMPLE,
    )
    add_checkpoint_options(parser)
    manifest = parser.add_mutually_exclusive_group()
    manifest.add_argument(
        "--write-manifest",
        metavar="FILE",
        help=f"write the SHA-256 of every file in the folders, except FILE itself; {REPLACED}",
    )
    manifest.add_argument(
        "--verify-manifest", metavar="FILE", help="compare the folders with a manifest"
    )
    add_json_option(parser)
    add_memory_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Returns:
        0 if all is well, else 1.

    Raises:
        UserError: A folder or the manifest cannot be read.
    """
    check_memory_options(args)
    if args.memory:
        if args.write_manifest or args.verify_manifest:
            raise UserError("--memory: cannot be combined with a manifest; run the command twice")
        return run_memory(args)
    facts, optional = environment(), libraries()
    report = None
    if args.checkpoint:
        report = inspect_checkpoint(args.checkpoint, args.audio_encoder)
    elif args.audio_encoder:
        raise UserError(f"--audio-encoder {args.audio_encoder}: needs --checkpoint DIR")
    results = _manifest(args)
    amiss = {name: result for name, result in results.items() if result not in ("ok", "written")}
    if args.json:
        print_json(_as_json(facts, optional, report, results))
    else:
        print_environment(facts, optional)
        if report is not None:
            print_checkpoint(report)
        _print_manifest(args, results, amiss)
    return 1 if amiss or (report is not None and not report.complete) else 0


def _manifest(args: argparse.Namespace) -> dict[str, str]:
    """Write or verify the manifest: file -> ``written``, ``ok``, ``missing`` or ``changed``."""
    target = args.write_manifest or args.verify_manifest
    if not target:
        return {}
    path = Path(target)
    folders = {"checkpoint": args.checkpoint, "audio-encoder": args.audio_encoder}
    roots = {label: Path(folder) for label, folder in folders.items() if folder}
    if not roots:
        raise UserError(f"{path}: a manifest describes a folder; add --checkpoint DIR")
    if args.write_manifest:
        check_file(path)
    files = manifest_files(roots, without=path)
    if args.verify_manifest:
        listed = read_manifest(path)
        files = {name: file for name, file in files.items() if name in listed}
    total = sum(file.stat().st_size for file in files.values())
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    out = console(stderr=True)
    with Progress(*columns, console=out, transient=True, disable=not out.is_interactive) as bar:
        task = bar.add_task("hashing", total=total)

        def progress(name: str, count: int) -> None:
            bar.update(task, advance=count, description=one_line(name.rpartition("/")[2], 24))

        if args.verify_manifest:
            return verify_manifest(path, roots, progress)
        write_manifest(path, roots, progress)
        return dict.fromkeys(files, "written")


def _as_json(
    facts: Mapping[str, str],
    optional: tuple[Library, ...],
    report: CheckpointReport | None,
    results: Mapping[str, str],
) -> dict[str, Any]:
    value: dict[str, Any] = {
        "environment": dict(facts),
        "libraries": [dataclasses.asdict(library) for library in optional],
    }
    if report is not None:
        rows = [dataclasses.asdict(row) for row in report.components]
        for row in rows:
            row["files"] = [str(file) for file in row["files"]]
        value["checkpoint"] = {
            "complete": report.complete,
            "can_prepare": report.can_prepare,
            "components": rows,
        }
    if results:
        value["manifest"] = dict(results)
    return value


def _print_manifest(
    args: argparse.Namespace, results: Mapping[str, str], amiss: Mapping[str, str]
) -> None:
    out = console()
    for name, result in amiss.items():
        out.print(f"[red]{result}[/]: {escape(name)}", soft_wrap=True)
    if args.write_manifest:
        out.print(
            f"wrote {escape(args.write_manifest)}: {plural(len(results), 'file')}", soft_wrap=True
        )
    elif args.verify_manifest and not amiss:
        out.print(f"[green]unchanged[/]: {plural(len(results), 'file')} of the manifest")
