"""What ``livetalk bench comm`` measures: options checked, ranks split."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from livetalk_kernels.environment import Ranks
from livetalk_kernels.errors import UserError
from livetalk_kernels.outputs import check_output
from livetalk_kernels.precision import dtype_name
from livetalk_kernels.runtime.mesh import Grid, Mesh

from ..config import Preset, get_preset
from ..loading import resolve_dtype
from ..picture_size import check_size
from ..vae import SPATIAL
from . import common

PRESETS = {"cpu": "mid", "cuda": "14b"}
OF_OPS = ("backend", "case", "shape", "no_compile", "threads", "hot", "tool", "csv")


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Describes the ranks and their messages.

    Attributes:
        preset: The model.
        size: Height and width of the picture.
        dtype: Dtype of the model.
        mesh: Ranks of the transformer.
        grid: The same ranks for the VAE.
    """

    preset: Preset
    size: tuple[int, int]
    dtype: torch.dtype
    mesh: Mesh
    grid: Grid

    def as_json(self) -> dict[str, Any]:
        """Convert to JSON's types."""
        return {
            "preset": self.preset.name,
            "size": list(self.size),
            "dtype": dtype_name(self.dtype),
            "world": self.mesh.world,
            "ulysses": self.mesh.ulysses,
            "ring": self.mesh.ring,
            "vae_grid": str(self.grid),
        }


def setup_of(args: argparse.Namespace, device: torch.device, ranks: Ranks | None) -> Setup:
    """Check the options, and choose a split of the ranks.

    Raises:
        UserError: An option or a file is invalid, or there is only one rank.
    """
    if args.ops != ["comm"]:
        raise UserError("comm: is not an op; run 'livetalk bench comm' by itself")
    for option in OF_OPS:
        if getattr(args, option):
            name = args.tool if option == "tool" else option.replace("_", "-")
            raise UserError(f"--{name}: belongs to ops, not to comm")
    world = _world(args.nproc, device, ranks)
    if args.json not in (None, common.STDOUT):
        # Ranks started from here do not repeat the warnings.
        (common.check_file if ranks is None else check_output)(Path(args.json), (".json",))
    preset = get_preset(args.preset or PRESETS[device.type])
    size = check_size(args.size or preset.size)
    return Setup(
        preset=preset,
        size=size,
        dtype=resolve_dtype(args.dtype, device),
        mesh=Mesh.choose(
            world,
            preset.dit.num_heads,
            ulysses=args.ulysses,
            ring=args.ring,
            ranks_per_node=ranks.local_world if ranks else None,
        ),
        grid=Grid.choose(
            world,
            (size[0] // SPATIAL, size[1] // SPATIAL),
            Grid.parse(args.vae_grid) if args.vae_grid else None,
        ),
    )


def _world(nproc: int | None, device: torch.device, ranks: Ranks | None) -> int:
    """Count the ranks."""
    world = ranks.world if ranks else nproc or 1
    if nproc is not None and nproc != world:
        raise UserError(f"--nproc {nproc}: torchrun has started {world} ranks; drop it")
    if world < 2:
        raise UserError("comm: needs at least two ranks; start them with --nproc N or torchrun")
    if device.type == "cuda":
        count, local = torch.cuda.device_count(), ranks.local_world if ranks else world
        if str(device) != "cuda":
            raise UserError(f"--device {device}: every rank needs its own GPU; use cuda")
        if count < local:
            raise UserError(
                f"comm: {local} ranks on a machine with {common.plural(count, 'GPU')}; use fewer "
                "ranks, or --device cpu"
            )
    return world
