"""``livetalk plan``: forecast what a number of GPUs would achieve: time, memory, the best split."""

import argparse
import gc
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from livetalk_kernels.errors import UserError
from livetalk_kernels.gpus import GPUS

from . import common, numbers
from .ranks import add_split_options

if TYPE_CHECKING:
    from ..plan.outlook import Request

EXAMPLE = """\
livetalk plan --gpu h800 --gpus 8 --size 768x448 --precision fp8
livetalk plan --gpu h200 --gpus 16 --nodes 2 --plot scaling.png
livetalk plan --gpu cpu --preset mid --fit profiles/data --size 160x96
livetalk plan --train --gpu h800 --gpus 64
livetalk plan --validate"""
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
        "Forecast what a number of GPUs would achieve: time of every stage, frames per second, "
        "start-up, memory, and the best split. Work and messages are counted, hardware figures "
        "come from data sheets, and a few efficiencies are fitted to published figures, or to your "
        "own reports (--fit). A forecast is not a measurement.",
        EXAMPLE,
    )
    parser.add_argument("--gpu", metavar="NAME", help=f"{', '.join(GPUS)}, or cpu (needs --fit)")
    parser.add_argument(
        "--gpus", type=numbers.RANKS, metavar="N", help="GPUs in total (default: 8)"
    )
    parser.add_argument(
        "--nodes",
        type=numbers.RANKS,
        metavar="N",
        help="number of nodes (default: as few as possible, 8 GPUs each)",
    )
    parser.add_argument(
        "--size",
        type=common.parse_size,
        metavar="HxW",
        help="picture size, height first (default: the preset's; with --train 720x416)",
    )
    parser.add_argument(
        "--precision",
        choices=("exact", "fp8"),
        help="precision of the blocks' linear layers (default: try both); fp8 is an approximation",
    )
    parser.add_argument("--preset", metavar="NAME", help="name of a preset (default: 14b)")
    common.add_dtype_option(
        parser, ("bf16", "fp32"), help="default and only choice: bf16 on GPUs, fp32 on a CPU"
    )
    parser.add_argument(
        "--steps", type=numbers.STEPS, metavar="N", help="denoising steps per chunk (default: 4)"
    )
    parser.add_argument("--cuda-graphs", action="store_true", help="replay steps from CUDA graphs")
    parser.add_argument(
        "--fuse-bias",
        action="store_true",
        help="the VAE adds biases in the pass of a norm or residual",
    )
    add_split_options(parser.add_argument_group("split"), default="the best")
    parser.add_argument(
        "--fit",
        nargs="+",
        default=[],
        metavar="FILE",
        help="reports of 'livetalk profile', 'bench --json' or 'bench comm --json', or folders of "
        "them, including 'make gpu-report', to use instead of published figures",
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
        help="forecast memory and time of training the transformer instead, in both stages, with "
        "the paper's settings, one copy of the parameters and --recompute; takes only --gpu, "
        "--gpus, --size, --preset and --json",
    )
    parser.add_argument(
        "--validate",
        action="store_true",
        help="validate the model against published figures, each held out of its fit, and against "
        "reports of this CPU (--fit; default: the repository's)",
    )
    common.add_json_option(parser)
    parser.set_defaults(run=run)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Pause the garbage collector, which would search torch's half a million objects for nothing.

    That took an eighth of a forecast's time; what a dry run leaves in cycles holds no memory.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.freeze()
            gc.unfreeze()  # now all objects count as old; else enabling would search them at once
            gc.enable()


@_without_collector()
def run(args: argparse.Namespace) -> int:
    """Forecast, or validate.

    Returns:
        0.

    Raises:
        UserError: An option or a file is invalid.
    """
    if args.validate:
        _refuse(args, FORECAST_ONLY, "--validate")
        from .plan_validate import validate

        return validate(args.fit, as_json=args.json)
    if args.gpu is None:
        raise UserError("--gpu: missing; give for example --gpu h800 --gpus 8, or --validate")
    if args.train:
        _refuse(args, {*FORECAST_ONLY, "fit"} - TRAINING, "--train")
        from .plan_train import plan_training

        return plan_training(args)
    from ..plan.outlook import Request

    given = {field.name: getattr(args, field.name) for field in fields(Request)}
    request = Request(**given)
    plot = None if args.plot is None else Path(args.plot)
    if plot is not None:
        from ..plan.plot import SUFFIXES

        common.check_file(plot, SUFFIXES, inputs=args.fit)
    if args.gpu.lower() == "cpu":
        _refuse(args, ("plot",), "--gpu cpu")
        return _run_cpu(request, as_json=args.json)
    return _run_gpu(request, plot, as_json=args.json)


def _refuse(args: argparse.Namespace, names: Collection[str], option: str) -> None:
    """Reject given options that conflict with another."""
    for name in sorted(names):
        if getattr(args, name) not in (None, False, []):
            raise UserError(f"--{name.replace('_', '-')}: cannot be combined with {option}")


def _run_gpu(request: "Request", plot: Path | None, *, as_json: bool) -> int:
    from ..plan.outlook import GpuOutlook

    outlook = GpuOutlook.of(request, plotted=plot is not None)
    if plot is not None:
        outlook.draw(plot)
        common.note(f"wrote {plot}")
    if as_json:
        common.print_json(outlook.as_json())
        return 0
    from .plan_tables import print_best, print_inputs, print_plans

    print_plans(outlook.title, outlook.plans)
    print_best(outlook.plans[0])
    print_inputs(outlook.machine.gpu, outlook.machine, outlook.evidence)
    return 0


def _run_cpu(request: "Request", *, as_json: bool) -> int:
    from ..plan.outlook import CpuOutlook

    outlook = CpuOutlook.of(request)
    if as_json:
        common.print_json(outlook.as_json())
        return 0
    from .plan_tables import print_best, print_plans, print_rates

    reports = outlook.reports
    print_plans(outlook.title, outlook.plans)
    print_best(outlook.plans[0])
    print_rates(outlook.machine, len(reports), reports[0].hardware)
    return 0
