"""``livetalk doctor --memory``, and the memory section of other reports."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from livetalk_kernels.errors import UserError

from .common import add_dtype_option, parse_size, print_json
from .numbers import RANKS
from .ranks import add_mesh_options

if TYPE_CHECKING:
    from ..dry_run.measure import Measured
    from ..dry_run.memory import Model

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
    """Add ``--memory`` and its options."""
    group = parser.add_argument_group("memory")
    group.add_argument(
        "--memory",
        action="store_true",
        help="predict a model's memory per rank, for a preset or --checkpoint",
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
        help="device to predict for (default: cuda; with --measure, the one present)",
    )
    group.add_argument(
        "--fuse-bias",
        action="store_true",
        help="the VAE adds biases in the pass of a norm or residual",
    )
    group.add_argument(
        "--ranks",
        type=RANKS,
        metavar="N",
        help="GPUs that share a stream (default: ulysses x ring)",
    )
    add_mesh_options(group, default="as few as possible")
    group.add_argument(
        "--measure",
        action="store_true",
        help="also run a chunk here, and show its memory next to the prediction",
    )


def check_memory_options(args: argparse.Namespace) -> None:
    """Reject the group's options without ``--memory``.

    Raises:
        UserError: One was given.
    """
    for option, name in _OPTIONS.items():
        if not args.memory and getattr(args, name):
            raise UserError(f"{option}: needs --memory")


def run_memory(args: argparse.Namespace) -> int:
    """Predict, measure if requested, and print.

    Raises:
        UserError: The choice is invalid, or a checkpoint cannot be read.
    """
    from ..dry_run.memory import predict
    from .memory_tables import memory_settings, memory_title, print_memory

    measured = None
    if args.measure:
        model, measured = _measure(args)
    else:
        model = _model(args)
    prediction = predict(model)
    if args.json:
        settings = memory_settings(model)
        value: dict[str, Any] = {"settings": settings, "predicted": prediction.as_json()}
        if measured is not None:
            value["measured"] = measured.as_json()
            value["difference"] = prediction.total / measured.total - 1
        print_json(value)
    else:
        name = Path(args.checkpoint).name if args.checkpoint else args.preset or "14b"
        print_memory(memory_title(name, model), prediction, measured, ranks=model.mesh.world)
    return 0


def _model(args: argparse.Namespace) -> "Model":
    """Build the requested model, without examining this machine."""
    from livetalk_kernels.runtime.mesh import Mesh

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
    world = args.ranks or (args.ulysses or 1) * (args.ring or 1)
    return Model(
        dit=dit,
        vae=vae,
        audio=audio,
        size=args.size or preset.size,
        device=device,
        dtype=DTYPES[args.dtype or ("bf16" if device == "cuda" else "fp32")],
        fp8=args.precision == "fp8",
        fuse_bias=args.fuse_bias,
        mesh=Mesh.choose(world, dit.num_heads, ulysses=args.ulysses, ring=args.ring),
    )


def _measure(args: argparse.Namespace) -> "tuple[Model, Measured]":
    from livetalk_kernels import KernelConfig

    from ..dry_run.measure import measure, require_memory
    from ..dry_run.memory import describe, predict
    from ..loading import ModelSource
    from ..picture_size import check_size
    from ..stream.chunk import StreamOptions

    if any(option not in (None, 1) for option in (args.ranks, args.ulysses, args.ring)):
        raise UserError("--measure: runs on one rank; drop --ranks, --ulysses and --ring")
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
        require_memory(predict(expected).total)
    preparer = source.load_preparer()
    size = check_size(args.size or preparer.size)
    pipeline = source.load_pipeline(preparer)
    options = StreamOptions()
    config = pipeline.dit.config
    model = describe(source, config, pipeline.vae.config, size=size, steps=options.steps)
    return model, measure(pipeline, size, options)
