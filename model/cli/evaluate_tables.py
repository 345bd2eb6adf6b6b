"""Tables of ``livetalk evaluate``."""

from pathlib import Path
from typing import Any

from ..evaluate.markdown import goals
from .common import console, escape
from .tables import plain_table


def print_goals(report: dict[str, Any], file: Path) -> None:
    """Print the values that the demo's model must reach."""
    out = console()
    for name, model in report["models"].items():
        runs = ", ".join(run["model"] for run in model["runs"])
        title = f"{name}: {escape(runs)}"
        table = plain_table(title, ("measure", ">value", ">wanted"), goals(model))
        out.print(table)
        if any(run["random_weights"] for run in model["runs"]):
            out.print("The weights are random: these numbers are meaningless.")
    out.print(
        f"{escape(file)}: {report['seconds']:.0f} s; tables, plot and JSON next to it",
        soft_wrap=True,
    )
