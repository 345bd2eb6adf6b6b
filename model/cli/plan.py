"""``livetalk plan``: what a number of GPUs would give: time, memory, the best split."""

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livetalk_kernels.errors import UserError
from livetalk_kernels.gpus import GPUS, Gpu, get_gpu
from livetalk_kernels.units import data_size

from . import common, numbers

if TYPE_CHECKING:
    from ..plan.evidence import Evidence
    from ..plan.forecast import Job
    from ..plan.machine import CpuMachine, GpuMachine
    from ..plan.search import Choice, Plan

EXAMPLE = """\
livetalk plan --gpu h800 --gpus 8 --size 768x448 --precision fp8
livetalk plan --gpu h200 --gpus 16 --nodes 2 --plot scaling.png
livetalk plan --gpu cpu --preset mid --fit profiles/data --size 160x96
livetalk plan --train --gpu h800 --gpus 64
livetalk plan --validate"""
DEFAULT_PRESETS = {"cpu": "mid"}
FORECAST_ONLY = (
    "gpu", "gpus", "nodes", "size", "precision", "preset", "dtype", "steps", "plot", "cuda_graphs",
    "fuse_bias", "train", "ulysses", "ring", "vae_grid",
)  # fmt: skip
TRAINING = {"gpu", "gpus", "size", "preset", "train"}


def add_parser(subparsers: common.Subparsers) -> None:
    """Add the command's options."""
    parser = common.add_command(
        subparsers,
        "plan",
        "Forecast what a number of GPUs would give: time of every stage, frames per second, "
        "start-up, memory, and the best split. Work and messages are counted, hardware is that of "
        "data sheets, and a few shares are fitted to published figures, or to reports of your own "
        "(--fit). A forecast is no measurement.",
        EXAMPLE,
    )
    parser.add_argument("--gpu", metavar="NAME", help=f"{', '.join(GPUS)}, or cpu (needs --fit)")
    parser.add_argument("--gpus", type=numbers.RANKS, metavar="N", help="GPUs in all (default: 8)")
    parser.add_argument(
        "--nodes",
        type=numbers.RANKS,
        metavar="N",
        help="nodes (default: as few as hold them, 8 GPUs each)",
    )
    parser.add_argument(
        "--size",
        type=common.parse_size,
        metavar="HxW",
        help="picture size, height first (default: the preset's)",
    )
    parser.add_argument(
        "--precision",
        choices=("exact", "fp8"),
        help="of the blocks' linear layers (default: both are tried); fp8 is an approximation",
    )
    parser.add_argument("--preset", metavar="NAME", help="name of a preset (default: 14b)")
    common.add_dtype_option(
        parser, ("bf16", "fp32"), help="default: bf16, on a CPU fp32, its only choices"
    )
    parser.add_argument(
        "--steps", type=numbers.STEPS, metavar="N", help="denoising steps per chunk (default: 4)"
    )
    parser.add_argument(
        "--cuda-graphs", action="store_true", help="steps are replayed from CUDA graphs"
    )
    parser.add_argument(
        "--fuse-bias",
        action="store_true",
        help="the VAE adds biases in the pass of a norm or residual",
    )
    split = parser.add_argument_group("split (default: the best)")
    split.add_argument(
        "--ulysses",
        type=numbers.RANKS,
        metavar="U",
        help="ranks that share the heads of a block of tokens",
    )
    split.add_argument("--ring", type=numbers.RANKS, metavar="R", help="blocks of tokens")
    split.add_argument(
        "--vae-grid", metavar="RxC", help="rows x columns of slices of the picture, a rank each"
    )
    parser.add_argument(
        "--fit",
        nargs="+",
        default=[],
        metavar="FILE",
        help="reports of 'livetalk profile', 'bench --json' or 'bench comm --json', or folders of "
        "them, also of 'make gpu-report', to take in place of published figures",
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        help="draw the scaling over 1 to 16 GPUs on nodes of at most 8, .png or .svg; "
        + common.REPLACED,
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="memory and time of training the transformer instead, both stages",
    )
    parser.add_argument(
        "--validate",
        action="store_true",
        help="hold the model against published figures, each left out of its own fit, and against "
        "reports of this CPU (--fit; default: the repository's)",
    )
    common.add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Forecast, or validate.

    Returns:
        0.

    Raises:
        UserError: An option or a file is no good.
    """
    if args.validate:
        _refuse(args, FORECAST_ONLY, "--validate")
        from .plan_validate import validate

        return validate(args.fit, as_json=args.json)
    if args.gpu is None:
        raise UserError("--gpu: say which, for example --gpu h800 --gpus 8; or --validate")
    if args.train:
        _refuse(args, {*FORECAST_ONLY, "fit"} - TRAINING, "--train")
        from .plan_train import plan_training

        return plan_training(args)
    if args.plot is not None:
        from ..plan.plot import SUFFIXES

        common.check_file(Path(args.plot), SUFFIXES, inputs=args.fit)
    return _run_cpu(args) if args.gpu.lower() == "cpu" else _run_gpu(args)


def _refuse(args: argparse.Namespace, names: Collection[str], option: str) -> None:
    """Refuse options that were given and do not go with another."""
    for name in sorted(names):
        if getattr(args, name) not in (None, False, []):
            raise UserError(f"--{name.replace('_', '-')}: does not go with {option}")


def _job(args: argparse.Namespace, itemsize: int) -> "Job":
    from ..config import get_preset
    from ..plan.forecast import Job
    from ..plan.systems import Schedule

    return Job.of(
        get_preset(args.preset or DEFAULT_PRESETS.get(args.gpu.lower(), "14b")),
        args.size,
        steps=4 if args.steps is None else args.steps,
        itemsize=itemsize,
        graphs=args.cuda_graphs,
        schedule=Schedule(fuse_bias=args.fuse_bias),
    )


def _choice(args: argparse.Namespace, fp8: bool | None) -> "Choice":
    from livetalk_kernels.runtime.mesh import Grid

    from ..plan.search import Choice

    return Choice(
        ulysses=args.ulysses,
        ring=args.ring,
        grid=Grid.parse(args.vae_grid) if args.vae_grid else None,
        fp8=fp8,
    )


def _run_gpu(args: argparse.Namespace) -> int:
    from ..plan.evidence import gpu_evidence
    from ..plan.fit import public_shares
    from ..plan.machine import GpuMachine
    from ..plan.recorded import read_recorded
    from ..plan.search import default_nodes, fewest_nodes, search

    gpu = get_gpu(args.gpu, besides=("cpu",))
    world = 8 if args.gpus is None else args.gpus
    if args.dtype == "fp32":
        raise UserError("--dtype fp32: GPUs are planned in bf16; leave it out")
    fp8 = {"exact": False, "fp8": True, None: None}[args.precision]
    if gpu.fp8 is None:
        if fp8:
            raise UserError(
                f"--precision fp8: the {gpu.title} has no FP8 tensor cores; use --precision exact"
            )
        fp8 = False
    nodes = default_nodes(world) if args.nodes is None else args.nodes
    if args.plot is not None and nodes != fewest_nodes(world):
        raise UserError(
            f"--nodes {nodes}: --plot shows every number of GPUs on as few nodes as hold them, 8 "
            "GPUs each; leave one of the two out"
        )
    job, choice = _job(args, itemsize=2), _choice(args, fp8)
    recorded = read_recorded(args.fit)
    evidence = gpu_evidence(recorded, gpu, public_shares())
    machine = GpuMachine(gpu=gpu, shares=evidence.shares, measured=evidence.figures)
    plans = search(job, machine, world=world, nodes=nodes, choice=choice)
    title = f"{args.preset or '14b'} at {job.size[0]}x{job.size[1]}, {job.steps} steps"
    title += _fused(args)
    if args.plot is not None:
        _plot(args, job, machine, choice, f"{title} a chunk, {gpu.title}")
    if args.json:
        common.print_json(_as_json(args, job, plans, world, nodes, gpu, machine, evidence))
        return 0
    where = f"{world} x {gpu.title}" + (f", {nodes} nodes" if nodes > 1 else "")
    _print_plans(f"{title}, bf16, {where}", plans)
    _print_best(plans[0])
    _print_inputs(gpu, machine, evidence)
    return 0


def _run_cpu(args: argparse.Namespace) -> int:
    from ..plan.recorded import check_one_setting, cpu_reports, fit_cpu, read_recorded
    from ..plan.search import Choice, search

    if args.gpus not in (None, 1) or args.nodes not in (None, 1):
        raise UserError("--gpu cpu: one rank only; leave --gpus and --nodes out")
    for option in ("ulysses", "ring", "vae_grid", "plot", "cuda_graphs"):
        if getattr(args, option):
            raise UserError(f"--{option.replace('_', '-')}: does not go with --gpu cpu")
    if not args.fit:
        raise UserError("--gpu cpu: needs --fit with reports of 'livetalk profile' on that CPU")
    itemsize = {"fp32": 4, "bf16": 2, None: 4}[args.dtype]
    fp8 = args.precision == "fp8"
    name, job = args.preset or DEFAULT_PRESETS["cpu"], _job(args, itemsize)
    reports = [
        report
        for report in cpu_reports(read_recorded(args.fit))
        if (report.job.itemsize, report.job.fp8) == (itemsize, fp8)
        and report.job.schedule.once
        and report.setting["model"] == name
    ]
    if not reports:
        raise UserError(
            f"--fit: no report there is of {name} on one rank of a CPU in {args.dtype or 'fp32'}, "
            f"{'fp8' if fp8 else 'exact'}; record one with 'livetalk profile --preset {name}'"
        )
    check_one_setting(reports)
    machine = fit_cpu(reports)
    plans = search(job, machine, world=1, nodes=1, choice=Choice(fp8=fp8))
    if args.json:
        value = _settings(args, job, 1, 1) | {
            "rates": machine.rates.as_dict(),
            "fitted_to": [str(report.path) for report in reports],
            "plans": [_plan_as_json(plan) for plan in plans],
        }
        common.print_json(value)
        return 0
    title = f"{name} at {job.size[0]}x{job.size[1]}, {job.steps} steps, {args.dtype or 'fp32'}"
    title += _fused(args)
    _print_plans(f"{title}, CPU", plans)
    _print_best(plans[0])
    _print_rates(machine, len(reports), reports[0].hardware)
    return 0


def _fused(args: argparse.Namespace) -> str:
    return ", fused biases" * args.fuse_bias


def _plot(
    args: argparse.Namespace,
    job: "Job",
    machine: "GpuMachine",
    choice: "Choice",
    title: str,
) -> None:
    from dataclasses import replace

    from livetalk_kernels.machine import commit

    from ..plan.plot import WORLDS, draw
    from ..plan.search import Choice, scaling

    if choice != Choice(fp8=choice.fp8):
        raise UserError("--plot: shows the best split of every number; leave the split out")
    precisions = [False, True] if choice.fp8 is None else [choice.fp8]
    curves = {
        fp8: scaling(job, machine, worlds=WORLDS, choice=replace(choice, fp8=fp8))
        for fp8 in precisions
    }
    target = Path(args.plot)
    draw(curves, target, title=title, commit=commit())
    common.note(f"wrote {target}")


# For machines -----------------------------------------------------------------------------


def _settings(args: argparse.Namespace, job: "Job", world: int, nodes: int) -> dict[str, Any]:
    return {
        "forecast": True,
        "settings": {
            "preset": args.preset or DEFAULT_PRESETS.get(args.gpu.lower(), "14b"),
            "size": list(job.size),
            "tokens": job.tokens,
            "steps": job.steps,
            "dtype": {2: "bfloat16", 4: "float32"}[job.itemsize],
            "cuda_graphs": job.graphs,
            "fuse_bias": job.schedule.fuse_bias,
            "gpu": args.gpu.lower(),
            "gpus": world,
            "nodes": nodes,
        },
    }


def _as_json(
    args: argparse.Namespace,
    job: "Job",
    plans: "list[Plan]",
    world: int,
    nodes: int,
    gpu: Gpu,
    machine: "GpuMachine",
    evidence: "Evidence",
) -> dict[str, Any]:
    from ..plan.figures import figures
    from ..plan.parameters import parameters

    quantities = gpu.quantities() | dict(evidence.figures)
    parts = parameters(job.dit, job.vae, job.encoder)
    return _settings(args, job, world, nodes) | {
        "hardware": {name: vars(quantity) for name, quantity in quantities.items()},
        "shares": {
            name: {
                "value": value,
                "source": evidence.measured.get(name, f"fitted to {len(figures())} figures"),
            }
            for name, value in machine.shares.as_dict().items()
        },
        "assumed": vars(machine.costs),
        "parameters": {name: vars(part) for name, part in parts.items()},
        "plans": [_plan_as_json(plan) for plan in plans],
    }


def _plan_as_json(plan: "Plan") -> dict[str, Any]:
    found, layout = plan.forecast, plan.layout
    name, share = found.bottleneck
    return {
        "ulysses": layout.mesh.ulysses,
        "ring": layout.mesh.ring,
        "vae_grid": str(layout.grid),
        "nodes": layout.nodes,
        "precision": "fp8" if plan.job.fp8 else "exact",
        "approximate": plan.job.fp8,
        "chunk": found.chunk,
        "step": found.step,
        "fps": found.fps,
        "realtime_factor": found.real_time,
        "startup": found.startup,
        "stages": {stage: dict(parts) for stage, parts in found.stages.items()},
        "beside": dict(found.beside),
        "added_by_beside": found.added,
        "bottleneck": {"part": name, "share": share},
        "memory": plan.memory.as_json() if plan.memory else None,
        "capacity": plan.capacity,
        "fits": plan.fits,
    }


# For people -------------------------------------------------------------------------------


def _print_plans(title: str, plans: "list[Plan]") -> None:

    from .bench_tables import plain_table, seconds

    out = common.console()
    out.print("[bold]Forecast, not measured[/]; untested on a GPU.")
    table = plain_table(title)
    table.add_column("U x R", no_wrap=True)
    table.add_column("VAE", no_wrap=True)
    table.add_column("precision", no_wrap=True)
    for name in ("chunk", "FPS", "start", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("bottleneck")
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
        "loaded model and an avatar file to the first frames. memory: of a rank."
    ]
    if any(plan.job.fp8 for plan in plans):
        notes.append("*: an approximation.")
    capacity = plans[0].capacity
    if capacity is not None and not all(plan.fits for plan in plans):
        notes.append(f"!: does not fit {data_size(round(capacity))}.")
    if plans[0].memory is None:
        notes.append("-: memory of this split is not predicted.")
    out.print(" ".join(notes) + "\n")


def _print_best(plan: "Plan") -> None:

    from .bench_tables import plain_table, seconds

    found, out = plan.forecast, common.console()
    table = plain_table("A chunk with the first of them, on the busiest rank")
    table.add_column("stage", no_wrap=True)
    for name in ("time", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("parts")
    for stage, parts in found.stages.items():
        whole = sum(parts.values())
        ordered = sorted(parts.items(), key=lambda entry: -entry[1])
        shown = [f"{name} {seconds(value)}" for name, value in ordered if value > 0.005 * whole]
        text = ", ".join(shown) if len(parts) > 1 else ""
        table.add_row(stage, seconds(whole), f"{whole / found.chunk:.1%}", text)
    for name, value in found.beside.items():
        table.add_row(f"({name})", seconds(value), "", "beside the others")
    if found.added:
        share = f"{found.added / found.chunk:.1%}"
        table.add_row("+ beside", seconds(found.added), share, "what does not fit into waits")
    table.add_section()
    table.add_row("chunk", seconds(found.chunk), "100.0%", f"a step: {seconds(found.step)}")
    out.print(table)


def _print_inputs(gpu: Gpu, machine: "GpuMachine", evidence: "Evidence") -> None:

    from ..plan.evidence import kinds
    from ..plan.figures import figures

    out = common.console()
    out.print("What this rests on (--json has every source):")
    for kind, quantities in kinds(gpu, evidence).items():
        text = ", ".join(
            f"{name} {_amount(name, quantity.value)}" for name, quantity in quantities.items()
        )
        out.print(f"- {kind}: {common.escape(text)}")
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
        out.print(f"- share of {name}, measured: {value:.2f}, from {common.escape(where)}")
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


def _print_rates(machine: "CpuMachine", count: int, hardware: str) -> None:
    rates = machine.rates
    common.console().print(
        f"What this rests on: 6 rates fitted to {common.plural(count, 'report')} of "
        f"{common.escape(hardware)}: linears {rates.linears / 1e9:.0f}, attention "
        f"{rates.attention / 1e9:.0f}, convolution {rates.convolution / 1e9:.0f}, audio encoder "
        f"{rates.audio / 1e9:.0f} GFLOP/s, memory {rates.bandwidth / 1e9:.1f} GB/s, "
        f"{rates.call * 1e6:.0f} µs a call."
    )
