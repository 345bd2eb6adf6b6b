"""``livetalk backends``: which kernel backends can run here, and why not."""

import argparse
from typing import Any

from rich.table import Table

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_kernels.config import find_tuning
from livetalk_kernels.dispatch import load_backend, support_table
from livetalk_kernels.precision import dtype_name

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

EXAMPLE = "livetalk backends --device cuda --dtype bf16"


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's options."""
    parser = add_command(
        subparsers,
        "backends",
        "List the backends of every op, whether they can run on this machine, and why not. "
        "'auto' marks the one that runs unless --backend or LIVETALK_BACKEND says otherwise.",
        EXAMPLE,
    )
    add_device_options(parser)
    add_config_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command.

    Raises:
        UserError: The device is not here, or the tuning file is no good.
    """
    device = use_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    config = KernelConfig(tuning=find_tuning(args.config))
    choices = bind_ops(config, device=device, dtype=dtype).choices
    rows: list[dict[str, Any]] = [
        {
            "op": op,
            "backend": name,
            "runs": reason is None,
            "auto": choices[op].name == name,
            "why": choices[op].reason if choices[op].name == name else "",
            "exact": not load_backend(op, name).approximate,
            "reason": reason or "",
        }
        for op, backends in support_table(device=device, dtype=dtype).items()
        for name, reason in backends.items()
    ]
    if args.json:
        print_json({"device": str(device), "dtype": str(dtype), "backends": rows})
        return 0
    title = f"Backends on {device.type}, {dtype_name(dtype)}"
    table = Table("op", "backend", "runs", title=title, title_justify="left")
    table.add_column("why not", overflow="fold")  # in few columns no command is cut off
    previous = None
    for row in rows:
        state = "auto" if row["auto"] else "yes" if row["runs"] else "no"
        colour = "green" if row["runs"] else "yellow"
        note = row["reason"] if row["exact"] else f"approximate; {row['reason']}".rstrip("; ")
        if row["why"].startswith("auto; tuned"):
            note = "; ".join(filter(None, (note, row["why"].removeprefix("auto; "))))
        table.add_row(
            row["op"] if row["op"] != previous else "",
            row["backend"],
            f"[{colour}]{state}[/]",
            escape(note),
        )
        previous = row["op"]
    console().print(table)
    return 0
