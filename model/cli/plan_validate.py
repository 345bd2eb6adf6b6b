"""``livetalk plan --validate``: compare the model with published times and those of this CPU."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from livetalk_kernels.units import seconds

from . import common

if TYPE_CHECKING:
    from rich.table import Table

    from ..plan.fit import Check
    from ..plan.recorded import CpuCheck


def validate(paths: Sequence[str], *, as_json: bool) -> int:
    """Print every figure with its prediction and error.

    Args:
        paths: Reports of a CPU, or folders of them; by default the repository's, if there are any.
        as_json: Print JSON.

    Returns:
        0, even if a figure is missed: the reason is printed.

    Raises:
        UserError: A file is not a report.
    """
    from ..plan.figures import figures
    from ..plan.fit import leave_one_out
    from ..plan.recorded import cpu_reports, leave_sizes_out, read_recorded

    reports = cpu_reports(read_recorded(paths or _recorded_here()))
    checks, sizes = leave_one_out(figures()), leave_sizes_out(reports)
    if as_json:
        common.print_json(_as_json(checks, sizes))
        return 0
    _print_figures(checks)
    _print_flops()
    _print_sizes(sizes)
    return 0


def _recorded_here() -> list[str]:
    """Find the repository's recorded results, if it is available and has a profile of a CPU."""
    from livetalk_kernels.machine import REPOSITORY

    from ..plan.recorded import is_profile

    folder = REPOSITORY / "profiles" / "data"
    files = [*folder.glob("*.json"), *folder.glob("*/report.json")]
    return sorted(str(path) for path in files if is_profile(path))


def _forward() -> tuple[float, float]:
    """Return TFLOP of a forward pass of Wan2.1 at 832 x 480, 81 frames: counted, published."""
    from livetalk_kernels.runtime.mesh import Mesh

    from ..plan.dit_work import Share, step_work
    from ..plan.figures import WAN_FORWARD_TFLOP, wan_job
    from ..plan.work import total

    job = wan_job()
    share = Share.of(Mesh(ulysses=1, ring=1), job.tokens, job.dit.num_heads)
    parts = step_work(job.dit, job.token_grid, share, job.schedule, itemsize=job.itemsize)
    return total(parts.values()).flops / 1e12, WAN_FORWARD_TFLOP


def _as_json(checks: "list[Check]", sizes: "list[CpuCheck]") -> dict[str, Any]:
    from livetalk_kernels.machine import machine

    from ..plan.fit import GOAL, PRIORS, public_shares
    from ..plan.recorded import CPU_PRIORS

    counted, published = _forward()
    return {
        "machine": machine(),  # where this was computed; includes the commit
        "goal": GOAL,
        "fitted_constants": len(PRIORS),
        "priors": {name: vars(prior) for name, prior in PRIORS.items()},
        "shares": public_shares().as_dict(),
        "figures": [
            {
                "name": check.figure.name,
                "source": check.figure.source,
                "settings": check.figure.settings,
                "observed": check.figure.seconds,
                "predicted": check.predicted,
                "error": check.error,
                "within": check.within,
                "explanation": None if check.within else check.figure.doubt,
                "shares_without_it": check.shares.as_dict(),
            }
            for check in checks
        ],
        "wan_forward_tflop": {"counted": counted, "published": published},
        "cpu": {
            "fitted_constants": len(CPU_PRIORS),
            "sizes": [
                vars(size) | {"error": size.error, "within": size.within, "size": list(size.size)}
                for size in sizes
            ],
        },
    }


def _print_figures(checks: "list[Check]") -> None:

    from ..plan.fit import GOAL, PRIORS
    from .tables import plain_table

    out = common.console()
    columns = ("figure", ">observed", ">predicted", ">error")
    table = plain_table("Published figures, each predicted from a fit to the others", columns)
    for check in checks:
        colour = "green" if check.within else "red"
        table.add_row(
            check.figure.name,
            seconds(check.figure.seconds),
            seconds(check.predicted),
            f"[{colour}]{check.error:+.1%}[/]",
        )
    out.print(table)
    met = sum(check.within for check in checks)
    out.print(
        f"{met} of {len(checks)} within {GOAL:.0%}; {len(PRIORS)} fitted constants "
        f"({', '.join(PRIORS)}). A chunk and a step of the same run are left out together. "
        "Hardware figures are not fitted."
    )
    for check in checks:
        if not check.within:
            reason = common.escape(check.figure.doubt)
            out.print(f"[red]{check.error:+.0%}[/] {common.escape(check.figure.name)}: {reason}.")
    out.print("\nWhat each system is taken to do, and where its figure stands:")
    printed: set[tuple[str, str]] = set()
    for check in checks:
        key = check.figure.source, check.figure.settings
        if key not in printed:
            printed.add(key)
            out.print(common.escape(f"- {check.figure.source}. {check.figure.settings}."))


def _print_flops() -> None:
    counted, published = _forward()
    common.console().print(
        f"\nWan2.1 14B, 832x480, 81 frames, one forward: {counted:,.0f} TFLOP counted here, "
        f"{published:,.0f} published ({counted / published - 1:+.1%})."
    )


def _print_sizes(sizes: "list[CpuCheck]") -> None:

    from ..plan.fit import GOAL
    from ..plan.recorded import CPU_PRIORS

    out = common.console()
    if not sizes:
        out.print(
            "\nCPU: no profiles of two sizes or more with equal settings were found; record them "
            "with 'livetalk profile --preset mid --size HxW' and name them with --fit."
        )
        return
    for hardware in dict.fromkeys(size.hardware for size in sizes):
        out.print(
            f"\nRecorded on {common.escape(hardware)}; each size predicted from a fit to the others"
        )
        out.print(_sizes_table([size for size in sizes if size.hardware == hardware]))
    met = sum(size.within for size in sizes)
    out.print(
        f"{met} of {len(sizes)} within {GOAL:.0%}; {len(CPU_PRIORS)} fitted constants "
        f"({', '.join(CPU_PRIORS)})."
    )


def _sizes_table(sizes: "list[CpuCheck]") -> "Table":

    from .tables import plain_table

    columns = ("size", ">observed", ">predicted", ">error", "~stages, error")
    table = plain_table(None, columns)
    for size in sizes:
        colour = "green" if size.within else "red"
        large = {
            stage: pair for stage, pair in size.stages.items() if pair[0] > 0.03 * size.observed
        }
        table.add_row(
            f"{size.size[0]}x{size.size[1]}",
            seconds(size.observed),
            seconds(size.predicted),
            f"[{colour}]{size.error:+.1%}[/]",
            ", ".join(f"{name} {b / a - 1:+.0%}" for name, (a, b) in large.items()),
        )
    return table
