"""``livetalk backends``: list the backends that run here or on another GPU."""

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from livetalk_kernels import KernelConfig, UserError
from livetalk_kernels.advice import Change, changes, choose, suppositions
from livetalk_kernels.backends.libraries import INSTALLED
from livetalk_kernels.config import find_tuning
from livetalk_kernels.dispatch import Choice, support_table
from livetalk_kernels.gpus import GPUS, Gpu, get_gpu
from livetalk_kernels.precision import dtype_name
from livetalk_kernels.registry import load_backend

from ..loading import resolve_dtype, use_device
from .common import (
    Subparsers,
    add_command,
    add_config_option,
    add_device_options,
    add_json_option,
    console,
    escape,
    print_json,
)
from .tables import plain_table

EXAMPLE = """\
livetalk backends --device cuda --dtype bf16
livetalk backends --gpu h100"""
VERSION = 2  # of the JSON


@dataclass(frozen=True)
class _Answer:
    """Holds the answer for one device: choices, support, and what more libraries would change."""

    device: torch.device
    dtype: torch.dtype
    gpu: Gpu | None
    supposed: dict[str, str]
    choices: dict[str, Choice]
    table: dict[str, dict[str, str | None]]
    changes: list[Change]


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's options."""
    parser = add_command(
        subparsers,
        "backends",
        "List every op's backends: the one that 'auto' picks (and that runs unless --backend or "
        "LIVETALK_BACKEND says otherwise), those that can run, and why the others cannot. With "
        "--gpu, answer for a GPU that this machine does not have, using the libraries installed "
        "here, and show what installing more of them would change.",
        EXAMPLE,
    )
    add_device_options(parser)
    parser.add_argument(
        "--gpu", metavar="NAME", help=f"a GPU to answer for instead: {', '.join(GPUS)}"
    )
    add_config_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        UserError: The device is absent, the GPU is unknown, or the tuning file is invalid.
    """
    if args.gpu is None:
        device, gpu, supposed = use_device(args.device), None, {}
        config = KernelConfig(tuning=find_tuning(args.config))
    else:
        device, gpu, supposed = torch.device("cuda"), get_gpu(args.gpu), suppositions()
        config = KernelConfig()
        for option, value in {"device": args.device, "config": args.config}.items():
            if value not in (None, "auto"):
                raise UserError(f"--{option} {value}: applies to this machine; drop it or --gpu")
    dtype = resolve_dtype(args.dtype, device)
    libraries = INSTALLED.supposing(supposed)
    choices = choose(config, device=device, dtype=dtype, gpu=gpu, libraries=libraries)
    table = support_table(device=device, dtype=dtype, gpu=gpu, libraries=libraries)
    more = []
    if gpu is not None:
        more = changes(choices, config, device=device, dtype=dtype, gpu=gpu, libraries=libraries)
    answer = _Answer(device, dtype, gpu, supposed, choices, table, more)
    if args.json:
        print_json(_as_json(answer))
    else:
        _print(answer)
    return 0


def _as_json(answer: _Answer) -> dict[str, Any]:
    choices = answer.choices
    rows = [
        {
            "op": op,
            "backend": name,
            "runs": reason is None,
            "auto": choices[op].name == name,
            "why": choices[op].reason if choices[op].name == name else "",
            "caution": choices[op].caution if choices[op].name == name else "",
            "exact": not load_backend(op, name).approximate,
            "reason": reason or "",
        }
        for op, backends in answer.table.items()
        for name, reason in backends.items()
    ]
    value = {
        "version": VERSION,
        "device": str(answer.device),
        "dtype": str(answer.dtype),
        "backends": rows,
    }
    gpu = answer.gpu
    if gpu is not None:
        facts = {
            "name": gpu.name,
            "title": gpu.title,
            "capability": list(gpu.capability),
            "shared_memory": gpu.shared_memory,
        }
        changed = [dataclasses.asdict(change) for change in answer.changes]
        value |= {"gpu": facts, "supposed": answer.supposed, "changes": changed}
    return value


def _print(answer: _Answer) -> None:
    """Print a row per op; reasons are numbered and listed once, below."""
    out, choices, table = console(), answer.choices, answer.table
    reasons: dict[str, int] = {}
    where = answer.device.type if answer.gpu is None else answer.gpu.title
    shown = plain_table(
        f"Backends on {escape(where)}, {dtype_name(answer.dtype)}",
        ("op", "auto", "~also run", "~cannot run (reasons below)"),
    )
    shown.columns[1].style = "green"
    for op, backends in table.items():
        runs, cannot = [], []
        for name, reason in backends.items():
            mark = "~" if load_backend(op, name).approximate else ""
            if reason is not None:
                number = reasons.setdefault(reason, len(reasons) + 1)
                cannot.append(escape(f"{name}{mark}[{number}]"))  # no space: never torn apart
            elif name != choices[op].name:
                runs.append(name + mark)
        shown.add_row(op, choices[op].name, " ".join(runs), " ".join(cannot))
    out.print(shown)
    notes = Table.grid(padding=(0, 2))
    notes.add_column(justify="right", no_wrap=True)
    notes.add_column(overflow="fold")  # in few columns no command is cut off
    for reason, number in reasons.items():
        notes.add_row(escape(f"[{number}]"), escape(reason))
    if any(load_backend(op, name).approximate for op, names in table.items() for name in names):
        notes.add_row("~", "approximate: runs only if named")
    out.print(notes)
    lines = [
        f"[yellow]{op}[/]: {choice.name}: {escape(choice.caution)}"
        for op, choice in choices.items()
        if choice.caution
    ]
    lines += [
        f"{op}: {choice.name}: {escape(choice.reason.removeprefix('auto; '))}"
        for op, choice in choices.items()
        if choice.reason.startswith("auto; tuned")
    ]
    if answer.supposed:
        versions = ", ".join(
            f"{name} {version}" if version else f"no {name}"
            for name, version in answer.supposed.items()
        )
        lines.append(f"Assumed, since this machine cannot tell: {escape(versions)}")
    lines += [
        f"With {change.library}: {change.op} would use [green]{change.then}[/] instead of "
        f"{change.now} ({escape(change.install)})"
        for change in answer.changes
    ]
    for line in lines:
        out.print(line)
