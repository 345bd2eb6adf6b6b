"""Lists what ranks send each other during a stream: patterns for ``livetalk bench comm``.

Sizes are those of the model's dry run, messages those of the runtime's own exchanges.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from livetalk_kernels.bench.comm_patterns import Exchange, Pattern, exchanges
from livetalk_kernels.runtime.comm import Communicator
from livetalk_kernels.runtime.halo import HaloExchange
from livetalk_kernels.runtime.mesh import Grid, Mesh, shares
from livetalk_kernels.runtime.sequence_parallel import SequenceParallel

from ..config import CHUNK_FRAMES, LATENT_FRAMES, Preset, VAEConfig
from ..vae import COLORS, SPATIAL
from .record import DECODE, record_vae
from .recorder import META, Recorder

_ALL_ROUND = (1, 1, 1, 1)  # padding of most convolutions


class Level(NamedTuple):
    """Resolution of the decoder.

    Attributes:
        factor: Rows and columns per latent.
        channels: Of most of its convolutions.
        frames: Per latent.
    """

    factor: int
    channels: int
    frames: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What determines the sizes of messages.

    Attributes:
        tokens: Tokens of a chunk.
        heads: Attention heads.
        head_dim: Channels of a head.
        outputs: Numbers that a step predicts per token.
        windows: Numbers of a chunk's audio windows.
        latent: Rows and columns of a latent.
        levels: Of the VAE, from latents to pixels.
        middle: Numbers that all ranks need of a latent's pixel, in the middle of the VAE.
        dtype: Of the model; what a step predicts and audio windows are float32.
    """

    tokens: int
    heads: int
    head_dim: int
    outputs: int
    windows: int
    latent: tuple[int, int]
    levels: tuple[Level, ...]
    middle: int
    dtype: torch.dtype

    @classmethod
    def of(cls, preset: Preset, size: tuple[int, int], dtype: torch.dtype) -> Self:
        """Collect the sizes of a model and a picture of ``size`` (height, width) pixels."""
        dit, latent = preset.dit, (size[0] // SPATIAL, size[1] // SPATIAL)
        frames, rows, columns = dit.patch_size
        patch = frames * rows * columns
        levels, middle = vae_levels(preset.vae)
        return cls(
            tokens=LATENT_FRAMES * latent[0] * latent[1] // patch,
            heads=dit.num_heads,
            head_dim=dit.head_dim,
            outputs=patch * dit.out_dim,
            windows=CHUNK_FRAMES * dit.audio_window * dit.audio_features,
            latent=latent,
            levels=levels,
            middle=middle,
            dtype=dtype,
        )


def vae_levels(config: VAEConfig) -> tuple[tuple[Level, ...], int]:
    """Find the decoder's levels, and the numbers that are gathered of a latent's pixel."""
    phase = record_vae(config, (4, 4), device="cpu", dtype=torch.float32).phases[DECODE]
    usual: dict[int, Level] = {}
    for border, _ in phase.borders.most_common():
        if border.padding == _ALL_ROUND:
            level = Level(border.factor, border.channels, border.frames)
            usual.setdefault(border.factor, level)
    return tuple(sorted(usual.values())), phase.gathered


def model_patterns(sizes: Sizes, mesh: Mesh, grid: Grid) -> list[Pattern]:
    """List what a mesh and a grid send, in the order of a chunk; what sends nothing is left out."""
    rows = shares(sizes.tokens, mesh.world)
    world = mesh.world

    def windows(comm: Communicator) -> None:
        comm.broadcast(_empty(sizes.windows), 0)

    def predicted(comm: Communicator) -> None:
        own = _empty(rows[comm.rank], sizes.outputs)
        comm.all_gather(own, rows)

    def middle(comm: Communicator) -> None:
        halo, (height, width) = _slice(comm, grid, sizes.latent)
        halo.gather(_empty(1, sizes.middle, 1, height, width, dtype=sizes.dtype))

    def frames(comm: Communicator) -> None:
        halo, latent = _slice(comm, grid, sizes.latent)
        factor, _, count = sizes.levels[-1]
        height, width = (factor * length for length in latent)
        halo.collect(_empty(count, height, width, COLORS, dtype=torch.uint8), (1, 2))

    (sent,), (step,), (gathered,), (pixels,) = (
        exchanges(world, run) for run in (windows, predicted, middle, frames)
    )
    found = [
        _pattern("audio windows to all", sent),
        *_attention_patterns(sizes, mesh),
        _pattern("gather, end of a step", step),
        _pattern("gather, middle of the VAE", gathered),
        *_halo_patterns(sizes, grid),
        _pattern("uint8 frames to rank 0", pixels),
    ]
    return [pattern for pattern in found if pattern.messages]


def _attention_patterns(sizes: Sizes, mesh: Mesh) -> list[Pattern]:
    """List the exchanges of a layer's self-attention: with all heads, and with one per rank."""
    many = _attention(sizes, mesh, sizes.heads)
    found: list[Pattern] = []
    to_heads = [entry for entry in many if entry.kind == "all_to_all"]
    if to_heads:
        found = [
            _pattern("q, k, v to heads, all heads", to_heads[0]),
            _pattern("results back, all heads", to_heads[-1]),
        ]
    if to_heads and sizes.heads > mesh.ulysses:
        first, *_, last = _attention(sizes, mesh, mesh.ulysses)
        found.insert(0, _pattern("q, k, v to heads, one head each", first))
        found.insert(2, _pattern("results back, one head each", last))
    around = [entry for entry in many if entry.kind == "ring"]
    return found + [_pattern("keys and values round the ring", entry) for entry in around[:1]]


def _attention(sizes: Sizes, mesh: Mesh, heads: int) -> list[Exchange]:
    """Record the exchanges of one self-attention with ``heads`` heads."""

    def run(comm: Communicator) -> None:
        recorder = Recorder("cpu", sizes.dtype)
        sequence = SequenceParallel(mesh, comm, recorder.ops).sequence(sizes.tokens)
        own = sequence.rows.stop - sequence.rows.start
        q = _empty(heads, 1, own, sizes.head_dim, dtype=sizes.dtype)
        v = _empty(1, own, heads, sizes.head_dim, dtype=sizes.dtype)
        with recorder:
            sequence.attention(q, q.clone(), v)

    return exchanges(mesh.world, run)


def _halo_patterns(sizes: Sizes, grid: Grid) -> list[Pattern]:
    """List the halos: a row or column at each border of a slice and corner pixels, per level.

    At the smallest and largest levels of a 2-D grid, also rows, columns and corners separately.
    """
    found = []
    flat = 1 in (grid.rows, grid.columns)
    for level in sizes.levels:

        def join(comm: Communicator, level: Level = level) -> None:
            halo, latent = _slice(comm, grid, sizes.latent)
            size = (level.factor * length for length in latent)
            halo.join(_empty(1, level.channels, level.frames, *size, dtype=sizes.dtype), _ALL_ROUND)

        (entry,) = exchanges(grid.world, join)
        height, width = (level.factor * length for length in sizes.latent)
        name = f"halo {height}x{width}x{level.channels}"
        found.append(_pattern(name, entry))
        if flat or level not in (sizes.levels[0], sizes.levels[-1]):
            continue
        for kind in ("rows", "columns", "corners"):
            chosen = [m for m in entry.messages if _border(grid, m.source, m.target) == kind]
            found.append(_pattern(f"{name}, {kind}", Exchange(entry.kind, tuple(chosen))))
    return found


def _border(grid: Grid, source: int, target: int) -> str:
    """Say what neighbours send each other: rows, columns or corners."""
    (row, column), (to_row, to_column) = grid.position(source), grid.position(target)
    return "columns" if row == to_row else "rows" if column == to_column else "corners"


def _slice(
    comm: Communicator, grid: Grid, latent: tuple[int, int]
) -> tuple[HaloExchange, tuple[int, int]]:
    """Divide a picture; return also rows and columns of this rank's slice of the latent."""
    halo = HaloExchange(comm, grid, latent)
    rows, columns = halo.slices.boxes[comm.rank]
    return halo, (len(rows), len(columns))


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def _pattern(name: str, entry: Exchange) -> Pattern:
    return Pattern(name=name, kind=entry.kind, messages=entry.messages)
