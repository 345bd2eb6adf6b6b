"""Tables of ``livetalk doctor``."""

from collections.abc import Mapping

from livetalk_kernels.units import big_count, data_size

from ..completeness import CheckpointReport
from ..environment import Library
from .common import console, escape
from .tables import plain_table

_COLOURS = {
    "found": "green",
    "missing": "yellow",
    "broken": "red",
    "not given": "yellow",
    "not needed": "green",
}


def print_environment(facts: Mapping[str, str], optional: tuple[Library, ...]) -> None:
    """Print what this machine offers."""
    # Folded: in few columns no command is cut off.
    table = plain_table("Environment", ("name", "~value"), header=False)
    for name, value in facts.items():
        table.add_row(name, escape(value))
    for library in optional:
        state = library.version or f"[yellow]{escape(library.problem)}[/]"
        table.add_row(library.name, f"{state} ({library.used_for})")
    console().print(table)


def print_checkpoint(report: CheckpointReport) -> None:
    """Print the parts of a checkpoint, and what it is good for."""
    out = console()
    columns = ("part", "~needed for", "~state", "~dtype", ">tensors", ">params", ">size")
    table = plain_table("Checkpoint", columns)
    for row in report.components:
        table.add_row(
            row.name,
            row.needed_for,
            f"[{_COLOURS[row.status]}]{row.status}[/]",
            ", ".join(row.dtypes),
            str(row.tensors) if row.tensors else "",
            big_count(row.parameters) if row.parameters else "",
            data_size(row.bytes) if row.bytes else "",
        )
    out.print(table)
    for row in report.components:
        if row.problem:
            out.print(
                f"[{_COLOURS[row.status]}]{row.name}[/]: {escape(row.problem)}", soft_wrap=True
            )
    if not report.complete:
        out.print("[red]incomplete[/]: 'generate' cannot run from this folder")
    elif not report.can_prepare:
        out.print(
            "[green]complete[/] for 'generate'; 'prepare' needs what is missing, "
            "or --prompt-embeds and --image-embeds"
        )
    else:
        out.print("[green]complete[/]")
