"""``livetalk doctor --memory``, and the part on memory of other reports."""

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livetalk_kernels.errors import UserError
from livetalk_kernels.units import data_size

from .common import add_dtype_option, console, escape, parse_size, print_json
from .numbers import RANKS

if TYPE_CHECKING:
    from rich.table import Table

    from livetalk_kernels.runtime.mesh import Mesh

    from ..dry_run.measure import Measured
    from ..dry_run.memory import Model, Prediction

# Option -> what argparse calls it; all of them need --memory.
_OPTIONS = {
    "--preset": "preset",
    "--size": "size",
    "--precision": "precision",
    "--dtype": "dtype",
    "--device": "device",
    "--fuse-bias": "fuse_bias",
    "--ranks": "ranks",
    "--ulysses": "ulysses",
    "--ring": "ring",
    "--measure": "measure",
}


def add_memory_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--memory`` and what it is asked for."""
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--memory",
        action="store_true",
        help="predict the memory of a model, of a preset or of --checkpoint, on every rank",
    )
    group.add_argument("--preset", metavar="NAME", help="name of a preset (default: 14b)")
    group.add_argument(
        "--size", type=parse_size, metavar="HxW", help="picture size (default: the model's)"
    )
    group.add_argument("--precision", choices=("exact", "fp8"), help="default: exact")
    add_dtype_option(group, ("fp32", "bf16"), help="default: bf16 on a GPU, fp32 on a CPU")
    group.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        help="what to predict for (default: cuda; with --measure what is here)",
    )
    group.add_argument(
        "--fuse-bias",
        action="store_true",
        help="the VAE adds biases in the pass of a norm or residual",
    )
    for option, meaning in (
        ("--ranks", "GPUs that share a stream (default: ulysses x ring)"),
        ("--ulysses", "of them, those that exchange heads"),
        ("--ring", "groups of them that pass keys and values around"),
    ):
        group.add_argument(option, type=RANKS, metavar="N", help=meaning)
    group.add_argument(
        "--measure",
        action="store_true",
        help="run a chunk here as well, and show what it took beside the prediction",
    )


def check_memory_options(args: argparse.Namespace) -> None:
    """Check that the options of the group are not given without ``--memory``.

    Raises:
        UserError: One is.
    """
    for option, name in _OPTIONS.items():
        if not args.memory and getattr(args, name):
            raise UserError(f"{option}: goes with --memory")


def run_memory(args: argparse.Namespace) -> int:
    """Predict, measure if asked to, and print.

    Raises:
        UserError: The choice is impossible, or a checkpoint cannot be read.
    """
    from ..dry_run.memory import predict

    measured = None
    if args.measure:
        model, measured = _measure(args)
    else:
        model = _model(args)
    prediction = predict(model)
    if args.json:
        value: dict[str, Any] = {"settings": _settings(model), "predicted": prediction.as_json()}
        if measured is not None:
            value["measured"] = measured.as_json()
            value["difference"] = prediction.total / measured.total - 1
        print_json(value)
    else:
        _print(_title(args, model), prediction, measured, ranks=model.mesh.world)
    return 0


def _model(args: argparse.Namespace) -> "Model":
    """What the options ask for, without looking at this machine."""
    from ..config import AudioEncoderConfig, get_preset
    from ..dry_run.memory import Model
    from ..loading import DTYPES
    from ..weights.checkpoint import CheckpointFolder

    if args.preset and args.checkpoint:
        raise UserError("--preset and --checkpoint: give one of them, not both")
    preset = get_preset(args.preset or "14b")
    dit, vae, audio = preset.dit, preset.vae, preset.audio
    if args.checkpoint:
        folder = CheckpointFolder(args.checkpoint)
        if args.audio_encoder:
            audio = AudioEncoderConfig.from_json(Path(args.audio_encoder) / "config.json")
            dit = folder.dit_config(audio.layers, audio.width)
        else:
            dit = folder.dit_config()
        vae = folder.vae_config()
    device = args.device or "cuda"
    return Model(
        dit=dit,
        vae=vae,
        audio=audio,
        size=args.size or preset.size,
        device=device,
        dtype=DTYPES[args.dtype or ("bf16" if device == "cuda" else "fp32")],
        fp8=args.precision == "fp8",
        fuse_bias=args.fuse_bias,
        mesh=_split(args, dit.num_heads),
    )


def _split(args: argparse.Namespace, heads: int) -> "Mesh":
    """The ranks asked for; what is not said is chosen so that as few as possible form the ring."""
    from livetalk_kernels.runtime.mesh import Mesh

    if args.ranks is None:
        return Mesh(ulysses=args.ulysses or 1, ring=args.ring or 1)
    ulysses = args.ulysses or (
        math.gcd(args.ranks, heads) if args.ring is None else args.ranks // args.ring
    )
    ring = args.ring or args.ranks // ulysses
    if ulysses * ring != args.ranks:
        raise UserError(
            f"--ranks {args.ranks}: is not ulysses {ulysses} x ring {ring}; leave one of them out"
        )
    return Mesh(ulysses=ulysses, ring=ring)


def _measure(args: argparse.Namespace) -> "tuple[Model, Measured]":
    from livetalk_kernels import KernelConfig

    from ..dry_run.measure import measure
    from ..dry_run.memory import describe, predict
    from ..loading import ModelSource
    from ..preparation import check_size
    from ..stream.chunk import StreamOptions

    if any(option not in (None, 1) for option in (args.ranks, args.ulysses, args.ring)):
        raise UserError("--measure: runs on one rank; leave --ranks, --ulysses and --ring out")
    source = ModelSource.find(
        preset=args.preset or (None if args.checkpoint else "14b"),
        checkpoint=args.checkpoint,
        audio_encoder=args.audio_encoder,
        device=args.device or "auto",
        dtype=args.dtype or "auto",
        precision=args.precision or "exact",
        backend=KernelConfig(),
        reuse=True,
        fuse_bias=args.fuse_bias,
    )
    source.require_audio_encoder()
    if source.device.type == "cpu":
        expected = replace(_model(args), device="cpu", dtype=source.dtype)
        _require_memory(predict(expected).total)
    preparer = source.load_preparer()
    size = check_size(args.size or preparer.size)
    pipeline = source.load_pipeline(preparer)
    options = StreamOptions()
    config = pipeline.dit.config
    model = describe(source, config, pipeline.vae.config, size=size, steps=options.steps)
    return model, measure(pipeline, size, options)


def _require_memory(need: int) -> None:
    """Refuse what would be killed half-way.

    Raises:
        UserError: This process may not take as many bytes.
    """
    from livetalk_kernels.machine import memory

    here = memory()
    if need > here.available:
        limit = f" of a limit of {data_size(here.limit)}" if here.limit is not None else ""
        raise UserError(
            f"--measure: takes about {data_size(need)}, and {data_size(here.available)}{limit} are "
            "available; use a smaller --preset or --size, or leave --measure out"
        )


def _settings(model: "Model") -> dict[str, Any]:
    return {
        "device": model.device,
        "dtype": {4: "fp32", 2: "bf16"}[model.dtype.itemsize],
        "precision": "fp8" if model.fp8 else "exact",
        "fuse_bias": model.fuse_bias,
        "size": list(model.size),
        "steps": model.steps,
        "ulysses": model.mesh.ulysses,
        "ring": model.mesh.ring,
    }


def _title(args: argparse.Namespace, model: "Model") -> str:
    name = Path(args.checkpoint).name if args.checkpoint else args.preset or "14b"
    height, width = model.size
    parts = [name, f"{height}x{width}", _settings(model)["dtype"]]
    if model.fp8:
        parts.append("FP8 linears")
    if model.fuse_bias:
        parts.append("fused biases")
    parts.append("GPU" if model.device == "cuda" else "CPU")
    if model.mesh.world > 1:
        parts.append(f"ulysses {model.mesh.ulysses} x ring {model.mesh.ring}, each rank")
    return ", ".join(parts)


def _print(
    title: str, prediction: "Prediction", measured: "Measured | None", *, ranks: int
) -> None:
    from rich.table import Table

    from ..dry_run.memory import ASSUMPTIONS

    table = Table()
    _add_columns(table, "what", measured)
    seen = measured.weights if measured else {}
    _add_sum(table, "weights", prediction.weights, seen, measured)
    _add_sum(table, "caches", prediction.caches, {}, measured)
    peak = prediction.peak
    _add_row(table, f"activations in '{prediction.peak_phase}'", peak.activations)
    _add_row(table, "workspace in it", peak.workspace)
    if measured is not None:
        _add_row(table, "both", peak.total, measured.peak)
    if prediction.assumed is not None:
        table.add_section()
        for name, size in vars(prediction.assumed).items():
            if size:
                _add_row(table, f"{name} (assumed)", size)
    table.add_section()
    _add_row(table, "total", prediction.total, measured.total if measured else None)
    phases = Table()
    _add_columns(phases, "phase", measured)
    kept = sum(prediction.caches.values())
    for name, phase in prediction.phases.items():
        found = measured.phases.get(name) if measured else None
        had = None if measured is None or found is None else measured.caches + found
        _add_row(phases, name, kept + phase.total, had)
    out = console()
    out.print(f"Memory: {escape(title)}")
    out.print(table)
    out.print("The most that a phase holds beside the weights:")
    out.print(phases)
    notes = []
    if prediction.assumed is not None:
        notes.append("Untested on a GPU; memory that the allocator cannot reuse comes on top.")
    if ranks > 1:
        notes.append(ASSUMPTIONS)
    for note in notes:
        out.print(note)


def _add_columns(table: "Table", first: str, measured: "Measured | None") -> None:
    table.add_column(first)
    for name in ("predicted", "measured", "difference")[: 3 if measured else 1]:
        table.add_column(name, justify="right", no_wrap=True)


def _add_sum(
    table: "Table",
    name: str,
    parts: Mapping[str, int],
    seen: Mapping[str, int],
    measured: "Measured | None",
) -> None:
    """A row of the sum, and one for each part."""
    total = None
    if measured is not None:
        total = sum(seen.values()) if seen else measured.caches
    _add_row(table, name, sum(parts.values()), total)
    for part, size in parts.items():
        _add_row(table, f"  {part}", size, seen.get(part))
    table.add_section()


def _add_row(table: "Table", name: str, predicted: int, measured: int | None = None) -> None:
    row = [name, data_size(predicted)]
    if measured is not None:
        row += [data_size(measured), f"{100 * (predicted / measured - 1):+.1f} %"]
    table.add_row(*row)
