"""Tables of ``livetalk diff``."""

from typing import Any

from ..diff import Difference
from .common import console, escape
from .tables import plain_table

WORST = 12


def print_difference(report: dict[str, Any], difference: Difference) -> None:
    """Print the layers with the largest errors, and the whole model's."""
    out = console()
    kind = "random weights" if report["random_weights"] else "checkpoint"
    out.print(
        f"{escape(str(report['model']))} ({kind}): {escape(report['a']['config'])} "
        f"against {escape(report['b']['config'])}",
        soft_wrap=True,
    )
    worst = (
        (name, str(error.calls), f"{error.relative:.2e}", f"{error.largest:.2e}")
        for name, error in difference.worst(WORST)
    )
    columns = ("layer", ">calls", ">relative L2", ">largest / RMS")
    out.print(plain_table("Layers with the largest errors, on equal inputs", columns, worst))
    table = plain_table("Whole model", ("what", ">error"))
    for index, error in enumerate(difference.steps, 1):
        table.add_row(f"DiT step {index}, equal inputs", f"{error.relative:.2e}")
    for name, error in difference.vae.items():
        table.add_row(f"VAE {name}, equal inputs", f"{error.relative:.2e}")
    for index, psnr in enumerate(difference.psnr, 1):
        value = "equal" if psnr is None else f"{psnr:.1f} dB"
        table.add_row(f"frames of chunk {index}, free running", value)
    out.print(table)
