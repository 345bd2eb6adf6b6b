"""``livetalk tune``: find the fastest backend of every op on this machine, and save the choice."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from livetalk_kernels.errors import UserError

from . import common, numbers
from .progress import progress_line

if TYPE_CHECKING:
    import torch

    from livetalk_kernels.bench.tune import Call, Outcome

EXAMPLE = """\
livetalk tune --preset tiny --output livetalk-tuning.json
livetalk tune all --dtype bf16 --budget 600
livetalk generate --config livetalk-tuning.json --portrait me.png \\
    --audio speech.wav --output talking.mp4"""
DEFAULT_FILE = Path("livetalk-tuning.json")
DEFAULT_BUDGET = 120.0


def add_parser(subparsers: common.Subparsers) -> None:
    """Declare the subcommand."""
    parser = common.add_command(
        subparsers,
        "tune",
        "Time the backends of every op and shape, interleaved, and write the fastest to a file for "
        "--config and LIVETALK_CONFIG. Results are checked first: a backend with wrong results is "
        "not timed. The file applies to this hardware, driver and version; elsewhere it is "
        "reported as stale. Its entries for other machines are kept.",
        EXAMPLE,
    )
    parser.add_argument("ops", nargs="*", metavar="OP", help="ops, or 'all' (default)")
    what = parser.add_argument_group("what to time")
    what.add_argument(
        "--preset",
        metavar="NAME",
        help="14b, small, mid, tiny or demo: use the shapes of this model (default: the cases of "
        "'bench')",
    )
    what.add_argument(
        "--size",
        type=common.parse_size,
        metavar="HxW",
        help="picture size, with --preset (default: the preset's)",
    )
    what.add_argument(
        "--precision",
        choices=("exact", "fp8"),
        help="precision of the preset's linear layers (default: exact)",
    )
    what.add_argument(
        "--fuse-bias",
        action="store_true",
        help="the preset's VAE fuses biases into a norm or residual, as with 'generate'",
    )
    what.add_argument(
        "--m-major-scales",
        action="store_true",
        help="with fp8, store block scales in the layout of matrix products, as with 'generate'",
    )
    common.add_device_options(what)
    what.add_argument(
        "--approximate",
        action="store_true",
        help="include approximate backends; 'auto' then picks them where this file says so",
    )
    how = parser.add_argument_group("how to time it")
    how.add_argument(
        "--budget",
        type=numbers.number(1e-9, numbers.MAX_SECONDS),
        default=DEFAULT_BUDGET,
        metavar="SECONDS",
        help="for all shapes together, most frequent first; the rest is skipped "
        f"(default: {DEFAULT_BUDGET:g})",
    )
    how.add_argument(
        "--threads", type=numbers.THREADS, metavar="N", help="CPU threads (default: torch's)"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output",
        type=Path,
        default=DEFAULT_FILE,
        metavar="FILE",
        help=f"a .json file; an existing one, also behind a link, is updated (default: "
        f"{DEFAULT_FILE})",
    )
    common.add_json_option(output)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check the options, then measure call after call.

    Returns:
        0; 1 if nothing could be timed; 130 after Ctrl-C, which keeps what was found.

    Raises:
        UserError: An option or the file is invalid.
    """
    from livetalk_kernels.bench.tune import Tuner, entry_of, outcomes_as_json
    from livetalk_kernels.heap import keep_freed_memory
    from livetalk_kernels.inputs import find
    from livetalk_kernels.outputs import write_json
    from livetalk_kernels.tuning import Tuning, TuningKey

    from ..loading import resolve_dtype, use_device
    from .interrupts import Interrupts

    _check(args)
    device = use_device(args.device)
    dtype = resolve_dtype(args.dtype, device)
    path: Path = args.output
    before = Tuning.load(path) if find(path).kind != "missing" else Tuning(path=str(path))
    calls = _calls(args, device, dtype)
    if not calls:
        what = f"--preset {args.preset}" if args.preset else f"--dtype {args.dtype}"
        raise UserError(f"{' '.join(args.ops)}: {what} never calls it; name other ops, or none")
    outcomes: list[Outcome] = []
    interrupted = True
    with common.torch_threads(args.threads), Interrupts() as interrupts:
        key = TuningKey.of(device)
        keep_freed_memory()
        with common.kept_until_failure() as kept, progress_line() as say:
            tuner = Tuner(device, budget=args.budget, approximate=args.approximate, say=say)
            for outcome in tuner.run(calls):
                outcomes.append(outcome)  # one by one: Ctrl-C keeps them
            interrupted = False
        interrupts.hold()
        if kept.error is not None and not outcomes:
            raise kept.error
        entry = entry_of(key, outcomes, complete=not interrupted)
        if args.json:
            common.print_json({"file": str(path), **outcomes_as_json(entry, outcomes)})
        else:
            from .bench_tables import print_tuning

            print_tuning(entry, outcomes)
        if entry.choices:
            write_json(path, before.updated(entry).as_json())
            common.note(f"wrote {path}; use it with --config or LIVETALK_CONFIG")
    if kept.error is not None:
        raise kept.error
    if interrupted:
        return common.INTERRUPTED
    if not entry.choices:
        common.note("nothing was timed, so nothing was written")
        return 1
    return 0


def _check(args: argparse.Namespace) -> None:
    from livetalk_kernels.bench.suite import known_ops

    known_ops(args.ops)
    for option in ("size", "precision", "fuse_bias", "m_major_scales"):
        if getattr(args, option) not in (None, False) and args.preset is None:
            name = option.replace("_", "-")
            raise UserError(f"--{name}: describes a model; needs --preset")
    if args.m_major_scales and args.precision != "fp8":
        raise UserError("--m-major-scales: only FP8 has scales; use --precision fp8 as well")
    common.check_file(args.output, (".json",))


def _calls(args: argparse.Namespace, device: "torch.device", dtype: "torch.dtype") -> "list[Call]":
    """List what to measure: the model's calls, or the ops' own cases."""
    from livetalk_kernels.bench.cases import select_cases
    from livetalk_kernels.bench.suite import ALL, known_ops
    from livetalk_kernels.bench.tune import Call
    from livetalk_kernels.registry import load_op

    ops = known_ops(args.ops or [ALL])
    if args.preset is None:
        return [
            Call(case=case)
            for op in ops
            if dtype in load_op(op).dtypes
            for case in select_cases(op, device, dtype)
        ]
    from ..config import get_preset
    from ..dry_run.calls import model_calls
    from ..picture_size import check_size

    preset = get_preset(args.preset)
    size = check_size(args.size or preset.size)
    calls = model_calls(
        preset,
        size=size,
        device=device,
        dtype=dtype,
        fp8=args.precision == "fp8",
        fuse_bias=args.fuse_bias,
        m_major_scales=args.m_major_scales,
    )
    return [call for call in calls if call.case.op in ops]
