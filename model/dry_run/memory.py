"""Predicts a model's memory from a dry run, which allocates nothing and needs no GPU.

`measure` shows what an allocator really allocated. Only tensors count, not the interpreter, library
code or queued audio. The published schedule (``--no-reuse``) is not predicted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.mesh import Grid, Mesh, shares, starts
from livetalk_kernels.runtime.slices import Slices

from ..config import (
    CHUNK_FRAMES,
    LATENT_FRAMES,
    AudioEncoderConfig,
    DiTConfig,
    VAEConfig,
    get_preset,
)
from ..picture_size import check_size
from ..vae import SPATIAL
from . import record as dry
from .recorder import Peak

if TYPE_CHECKING:
    from ..loading import ModelSource

ASSUMPTIONS = (
    "Each rank holds all weights, and the keys and values of text and image, which all of its "
    "tokens attend to; tokens, and the keys and values of the audio that they hear, are split. "
    "So are the rows of the VAE, whose convolutions copy their input next to their neighbours' "
    "rows."
)
_FP32 = 4


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model and how it runs.

    Attributes:
        dit: Transformer.
        vae: VAE.
        audio: Audio encoder.
        size: Height and width in pixels.
        device: ``cpu`` or ``cuda``; with the backends that ``auto`` prefers there.
        dtype: Dtype of DiT and VAE.
        fp8: Whether the linear layers of the transformer's blocks are in FP8.
        fuse_bias: Whether the VAE's residual blocks add their biases in other passes.
        steps: Denoising steps.
        text_rows: Rows of the prompt's embedding; by default the longest prompt's.
        mesh: Ranks of the transformer; each holds all weights.
        grid: The same ranks for the VAE; by default as the runtime chooses it.

    Raises:
        UserError: The size or the split does not fit.
    """

    dit: DiTConfig
    vae: VAEConfig
    audio: AudioEncoderConfig
    size: tuple[int, int]
    device: str
    dtype: torch.dtype
    fp8: bool = False
    fuse_bias: bool = False
    steps: int = 4
    text_rows: int | None = None
    mesh: Mesh = dry.ALONE
    grid: Grid | None = None

    def __post_init__(self) -> None:
        """Reject what cannot run."""
        check_size(self.size)
        heads, rows = self.dit.num_heads, self.latent[0]
        if heads % self.mesh.ulysses:
            raise UserError(
                f"--ulysses {self.mesh.ulysses}: must divide the model's {heads} heads; "
                f"use {' or '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}"
            )
        if self.mesh.world > rows:
            raise UserError(
                f"--ranks {self.mesh.world}: the latent has {rows} rows, and each rank needs one"
            )

    @property
    def latent(self) -> tuple[int, int]:
        """Rows and columns of the latent."""
        return self.size[0] // SPATIAL, self.size[1] // SPATIAL

    @property
    def slices(self) -> Slices:
        """The assignment of picture slices to ranks."""
        grid = Grid.choose(self.mesh.world, self.latent, self.grid)
        return Slices(grid=grid, size=self.latent)

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Tokens as frames, rows and columns."""
        _, rows, columns = self.dit.patch_size
        return LATENT_FRAMES, self.latent[0] // rows, self.latent[1] // columns


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """GPU memory that is neither counted nor measured here.

    Attributes:
        context: CUDA's own memory and kernel code.
        cublas: cuBLAS's workspace as set by PyTorch on Hopper.
        convolution: Workspace of the convolution library.
        communication: NCCL's buffers, on several ranks.
        beside: What the allocator reserves for the side stream: the decoder's warm-up with the
            state it leaves, or the audio encoder (see `runtime.lanes`).
    """

    context: int = 500 * 10**6
    cublas: int = 32 << 20
    convolution: int = 250 * 10**6
    communication: int = 0
    beside: int = 0

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(vars(self).values())


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Bytes on one rank.

    Attributes:
        weights: Part of the model -> bytes, while it is loaded.
        caches: Cache -> bytes, during a session.
        phases: Phase of a chunk -> peak in addition to weights and caches. It can be negative while
            the session's caches are incomplete.
        assumed: Further memory on a GPU; None on a CPU.
    """

    weights: Mapping[str, int]
    caches: Mapping[str, int]
    phases: Mapping[str, Peak]
    assumed: Assumed | None

    @property
    def peak_phase(self) -> str:
        """Name of the largest phase."""
        return max(self.phases, key=lambda name: self.phases[name].total)

    @property
    def peak(self) -> Peak:
        """Peak of the largest phase."""
        return self.phases[self.peak_phase]

    @property
    def resident(self) -> int:
        """Weights and caches."""
        return sum(self.weights.values()) + sum(self.caches.values())

    @property
    def total(self) -> int:
        """Peak of everything, including assumptions."""
        return self.resident + self.peak.total + (self.assumed.total if self.assumed else 0)

    def as_json(self) -> dict[str, Any]:
        """Convert to plain values, in bytes."""
        return {
            "weights": {**self.weights, "total": sum(self.weights.values())},
            "caches": {**self.caches, "total": sum(self.caches.values())},
            "phases": {name: peak._asdict() for name, peak in self.phases.items()},
            "peak_phase": self.peak_phase,
            "activations": self.peak.activations,
            "workspace": self.peak.workspace,
            "assumed": vars(self.assumed) if self.assumed else None,
            "total": self.total,
        }


def predict(model: Model) -> Prediction:
    """Compute the memory of a one-voice session from a dry run of the busiest rank."""
    kind: dict[str, Any] = {"device": model.device, "dtype": model.dtype}
    slices, config = model.slices, model.dit
    dit = dry.record_transformer(
        config,
        model.tokens,
        mesh=model.mesh,
        rank=_most_tokens(model),
        fp8=model.fp8,
        steps=model.steps,
        text_rows=model.text_rows,
        **kind,
    )
    largest = _most_pixels(slices)
    rows, columns = slices.boxes[largest]
    vae = dry.record_vae(
        model.vae,
        (len(rows), len(columns)),
        halo=slices.halo(largest, (1, 1, 1, 1)),
        world=slices.grid.world,
        fuse_bias=model.fuse_bias,
        **kind,
    )
    audio = dry.record_audio(model.audio, model.device)
    caches = {**dit.caches, **vae.caches}
    state, kept = caches["decoder state"], sum(caches.values())
    embeddings = _FP32 * (
        (model.text_rows or config.text_len) * config.text_dim + config.image_len * config.image_dim
    )
    windows = _FP32 * CHUNK_FRAMES * config.audio_window * config.audio_features
    found, frames = dit.phases, vae.phases
    ready = kept - state - caches["K/V of audio"]  # when the decoder is first warmed up
    phases = {
        dry.PORTRAIT: _above(kept - embeddings, frames[dry.PORTRAIT].peak),
        dry.PREPARE: max(
            _above(kept, found[dry.PREPARE].peak),
            _above(kept - ready, frames[dry.PREPARE].peak),
            key=lambda peak: peak.total,
        ),
        dry.AUDIO: audio.phases[dry.AUDIO].peak,
        dry.AUDIO_KV: _above(kept - state, found[dry.AUDIO_KV].peak),
        dry.DENOISE: _above(kept - state, found[dry.DENOISE].peak),
        dry.DECODE: _above(state - windows, frames[dry.SECOND].peak, frames[dry.DECODE].peak),
        **{
            name: _above(state - windows, frames[name].peak)
            for name in (dry.COLOUR, dry.TO_HOST, dry.ENCODE, dry.WARM)
        },
    }
    beside = [audio.phases[dry.AUDIO].grown]
    if model.mesh.world == 1:  # several ranks communicate for it, so it is not on a side stream
        beside.append(frames[dry.WARM].grown)
    communication = 250 * 10**6 if model.mesh.world > 1 else 0
    assumed = Assumed(communication=communication, beside=max(beside))
    return Prediction(
        weights={**dit.weights, **vae.weights, **audio.weights},
        caches=caches,
        phases=phases,
        assumed=None if model.device == "cpu" else assumed,
    )


def _above(floor: int, *peaks: Peak) -> Peak:
    """Return the highest peak, relative to what is always held."""
    activations, workspace = max(peaks, key=lambda peak: peak.total)
    return Peak(activations - floor, workspace)


def _most_tokens(model: Model) -> int:
    """Return the rank whose tokens span most frames of audio, and among those the largest share."""
    frames, rows, columns = model.tokens
    frame = rows * columns
    sizes = shares(frames * frame, model.mesh.world)
    first = starts(sizes)

    def busy(rank: int) -> tuple[int, int]:
        return -(-first[rank + 1] // frame) - first[rank] // frame, sizes[rank]

    return max(range(model.mesh.world), key=busy)


def _most_pixels(slices: Slices) -> int:
    """Return the rank with the largest slice, including its neighbours' pixels."""

    def busy(rank: int) -> int:
        top, bottom, left, right = slices.halo(rank, (1, 1, 1, 1))
        rows, columns = slices.boxes[rank]
        return (top + len(rows) + bottom) * (left + len(columns) + right)

    return max(range(slices.grid.world), key=busy)


def describe(
    source: "ModelSource",
    dit: DiTConfig,
    vae: VAEConfig,
    *,
    size: tuple[int, int],
    steps: int = 4,
    text_rows: int | None = None,
) -> Model:
    """Describe what runs, for weights from ``source``, on one rank.

    Raises:
        UserError: The audio encoder's configuration cannot be read.
    """
    audio = get_preset(source.preset).audio
    if source.audio_encoder is not None:
        audio = AudioEncoderConfig.from_json(source.audio_encoder / "config.json")
    return Model(
        dit=dit,
        vae=vae,
        audio=audio,
        size=size,
        device=source.device.type,
        dtype=source.dtype,
        fp8=source.precision == "fp8",
        fuse_bias=source.fuse_bias,
        steps=steps,
        text_rows=text_rows,
    )
