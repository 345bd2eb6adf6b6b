"""Tables of ``livetalk plan``."""

from livetalk_kernels.gpus import Gpu
from livetalk_kernels.units import data_size, seconds

from ..plan.evidence import Evidence, kinds
from ..plan.figures import figures
from ..plan.machine import CpuMachine, GpuMachine
from ..plan.search import Plan
from .common import console, escape, plural
from .tables import plain_table


def print_plans(title: str, plans: list[Plan]) -> None:
    """Print a row for each split, the best first."""
    out = console()
    out.print("[bold]Forecast, not measured[/]; untested on a GPU.")
    numbers = (">chunk", ">FPS", ">start", ">memory")
    table = plain_table(title, ("U x R", "VAE", "precision", *numbers, "~bottleneck"))
    for plan in plans:
        found, mesh = plan.forecast, plan.layout.mesh
        part, share = found.bottleneck
        memory = "-"
        if plan.memory is not None:
            memory = data_size(plan.memory.total)
        table.add_row(
            f"{mesh.ulysses} x {mesh.ring}",
            str(plan.layout.grid),
            "fp8 *" if plan.job.fp8 else "exact",
            seconds(found.chunk),
            f"{found.fps:.1f}",
            seconds(found.startup),
            memory if plan.fits else f"[red]{memory} ![/]",
            f"{part.removeprefix('denoise: ')} {share:.0%}",
        )
    out.print(table)
    notes = [
        "U x R: ulysses x ring. chunk: 28 new frames, 1.12 s of video at 25 FPS. start: from a "
        "loaded model and an avatar file to the first frames. memory: per rank."
    ]
    if any(plan.job.fp8 for plan in plans):
        notes.append("*: an approximation.")
    capacity = plans[0].capacity
    if capacity is not None and not all(plan.fits for plan in plans):
        notes.append(f"!: does not fit {data_size(round(capacity))}.")
    if plans[0].memory is None:
        notes.append("-: memory of this split is not predicted.")
    out.print(" ".join(notes) + "\n")


def print_best(plan: Plan) -> None:
    """Print the stages of a chunk."""
    found, out = plan.forecast, console()
    columns = ("stage", ">time", ">share", "~parts")
    table = plain_table("A chunk of the best plan, on the busiest rank", columns)
    for stage, parts in found.stages.items():
        whole = sum(parts.values())
        ordered = sorted(parts.items(), key=lambda entry: -entry[1])
        shown = [f"{name} {seconds(value)}" for name, value in ordered if value > 0.005 * whole]
        text = ", ".join(shown) if len(parts) > 1 else ""
        table.add_row(stage, seconds(whole), f"{whole / found.chunk:.1%}", text)
    for name, value in found.beside.items():
        table.add_row(f"({name})", seconds(value), "", "concurrent")
    if found.added:
        share = f"{found.added / found.chunk:.1%}"
        table.add_row("+ concurrent", seconds(found.added), share, "not hidden by waits")
    table.add_section()
    table.add_row("chunk", seconds(found.chunk), "100.0%", f"a step: {seconds(found.step)}")
    out.print(table)


def print_inputs(gpu: Gpu, machine: GpuMachine, evidence: Evidence) -> None:
    """Print what a forecast for GPUs is based on."""
    out = console()
    out.print("Based on (--json lists every source):")
    for kind, quantities in kinds(gpu, evidence).items():
        text = ", ".join(
            f"{name} {_amount(name, quantity.value)}" for name, quantity in quantities.items()
        )
        out.print(f"- {kind}: {escape(text)}")
    fitted = {
        name: value
        for name, value in machine.shares.as_dict().items()
        if name not in evidence.measured
    }
    if fitted:
        text = ", ".join(f"{name} {value:.2f}" for name, value in fitted.items())
        out.print(
            f"- shares of these, fitted to {len(figures())} published figures: {text}; they are "
            "what other systems reach, with planar convolutions"
        )
    for name, where in evidence.measured.items():
        value = machine.shares.as_dict()[name]
        out.print(f"- share of {name}, measured: {value:.2f}, from {escape(where)}")
    costs = machine.costs
    out.print(
        f"- assumed: {costs.launch * 1e6:.0f} µs a launch, {costs.latency * 1e6:.0f} µs an "
        f"exchange ({costs.far * 1e6:.0f} between nodes), loudness {costs.loudness * 1e3:.0f} ms"
    )


def _amount(name: str, value: float) -> str:
    if name == "memory":
        return f"{value / 1e9:.0f} GB"
    if name == "sms":
        return f"{value:.0f}"
    if name in ("bandwidth", "nvlink", "network"):
        return f"{value / 1e9:,.0f} GB/s"
    return f"{value / 1e12:,.0f} TFLOP/s"


def print_rates(machine: CpuMachine, count: int, hardware: str) -> None:
    """Print what a forecast for a CPU is based on."""
    rates = machine.rates
    console().print(
        f"Based on 6 rates fitted to {plural(count, 'report')} of "
        f"{escape(hardware)}: linears {rates.linears / 1e9:.0f}, attention "
        f"{rates.attention / 1e9:.0f}, convolution {rates.convolution / 1e9:.0f}, audio encoder "
        f"{rates.audio / 1e9:.0f} GFLOP/s, memory {rates.bandwidth / 1e9:.1f} GB/s, "
        f"{rates.call * 1e6:.0f} µs a call."
    )
