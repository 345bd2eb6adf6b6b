"""How much memory a model takes, by arithmetic: nothing is allocated, no GPU is needed.

`predict` counts weights and caches on modules without storage, and follows every phase of a chunk
through the model's code to find when most is held (`vae`, `dit`). `measure` holds it to what an
allocator really gave. Only tensors count: the interpreter, libraries' code and audio that waits to
be spoken do not. The published schedule (``--no-reuse``) is not predicted.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_kernels.errors import UserError
from livetalk_kernels.extension import product_dtype
from livetalk_kernels.precision import FP8

from ..config import (
    CHUNK_FRAMES,
    FRAMES_PER_LATENT,
    LATENT_FRAMES,
    MOTION_FRAMES,
    MOTION_LATENTS,
    AudioEncoderConfig,
    DiTConfig,
    VAEConfig,
    get_preset,
)
from ..dit import DiT
from ..loading import ModelSource
from ..preparation import check_size
from ..stream.work import MASK_CHANNELS
from ..vae import COLORS, VAE
from .dit import ONE_RANK, DiTMemory, Split, audio_encoder_bytes, encode_audio
from .ledger import FP32, Ledger, Machine, Peak
from .vae import VaeLedger, latent_size, packing_bytes

__all__ = ["ASSUMPTIONS", "Assumed", "Model", "Peak", "Prediction", "Split", "describe", "predict"]

ASSUMPTIONS = (
    "Each rank holds all weights, and the keys and values of text and image, which all of its "
    "tokens attend to; tokens, and the keys and values of the audio that they hear, are split. "
    "So are the rows of the VAE, whose convolutions copy their input next to their neighbours' "
    "rows."
)

_SCALE = "_scale"  # last part of the name of an FP8 weight's scales


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model and how it runs.

    Attributes:
        dit: Transformer.
        vae: VAE.
        audio: Audio encoder.
        size: Height and width in pixels.
        device: ``cpu`` or ``cuda``; the backends are those that ``auto`` prefers there.
        dtype: Of DiT and VAE.
        fp8: Linear layers of the transformer's blocks are in FP8.
        fuse_bias: The VAE's residual blocks add their biases in other passes.
        steps: Denoising steps.
        text_rows: Rows of the prompt's embedding; by default the longest prompt's.
        split: Ranks; weights are on each.

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
    split: Split = ONE_RANK

    def __post_init__(self) -> None:
        """Refuse what cannot run."""
        check_size(self.size)
        heads, rows = self.dit.num_heads, latent_size(*self.size)[0]
        if heads % self.split.ulysses:
            raise UserError(
                f"--ulysses {self.split.ulysses}: must divide the model's {heads} heads; "
                f"use {' or '.join(str(n) for n in range(1, heads + 1) if heads % n == 0)}"
            )
        if self.split.ranks > rows:
            raise UserError(
                f"--ranks {self.split.ranks}: the latent has {rows} rows, and each rank needs one"
            )


@dataclass(frozen=True, kw_only=True)
class Assumed:
    """What is neither counted nor measured here but taken up on a GPU; untested on a GPU.

    Attributes:
        context: CUDA's own memory and the kernels' code.
        cublas: cuBLAS's workspace as PyTorch sets it on Hopper.
        convolution: Workspace of the convolution library.
        communication: NCCL's buffers, with several ranks.
        beside: What the allocator keeps for the side stream, whose memory is its own: the decoder's
            warm-up with the state it leaves, or the audio encoder (see `runtime.lanes`).
    """

    context: int = 500 * 10**6
    cublas: int = 32 << 20
    convolution: int = 250 * 10**6
    communication: int = 0
    beside: int = 0

    @property
    def total(self) -> int:
        """Together."""
        return sum(vars(self).values())


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Bytes on one rank.

    Attributes:
        weights: Part of the model -> bytes, for as long as it is loaded.
        caches: What -> bytes, for as long as a session lasts.
        phases: Phase of a chunk -> what it holds at its peak, beside weights and caches. Before the
            session's caches are all there it can be less than nothing.
        assumed: On a GPU; None on a CPU.
    """

    weights: Mapping[str, int]
    caches: Mapping[str, int]
    phases: Mapping[str, Peak]
    assumed: Assumed | None

    @property
    def peak_phase(self) -> str:
        """The phase that holds most."""
        return max(self.phases, key=lambda name: self.phases[name].total)

    @property
    def peak(self) -> Peak:
        """What it holds."""
        return self.phases[self.peak_phase]

    @property
    def resident(self) -> int:
        """Weights and caches."""
        return sum(self.weights.values()) + sum(self.caches.values())

    @property
    def total(self) -> int:
        """The most that is held at a time, with what is assumed."""
        return self.resident + self.peak.total + (self.assumed.total if self.assumed else 0)

    def as_json(self) -> dict[str, Any]:
        """All of it, in bytes."""
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
    """Count the memory of a session with one voice."""
    machine = Machine(
        device=model.device,
        item=model.dtype.itemsize,
        widens=product_dtype(torch.device(model.device), model.dtype) != model.dtype,
    )
    ops = bind_ops(KernelConfig(), device="meta", dtype=torch.float32)  # for shapes only
    with torch.device("meta"):
        dit = DiT(model.dit, ops, fp8=model.fp8)
        vae = VAE(model.vae, ops, fuse_bias=model.fuse_bias)
    vae.to(model.dtype).prepare()
    session = _Session(model, machine, vae)
    # As `ModelSource.spares_memory`; they come one at a time when a session starts.
    host = dit.avatar_parameters() if model.fp8 and not machine.is_cpu else frozenset()
    weights = {
        "DiT": _dit_bytes(dit, model.dtype, without=host),
        "VAE": sum(tensor.nbytes for tensor in [*vae.parameters(), *vae.buffers()])
        + packing_bytes(vae, machine),
        "audio encoder": audio_encoder_bytes(model.audio),
    }
    ranks = model.split.ranks
    communication = 250 * 10**6 if ranks > 1 else 0
    assumed = Assumed(communication=communication, beside=session.beside)
    return Prediction(
        weights=weights,
        caches=session.caches,
        phases=session.phases(),
        assumed=None if machine.is_cpu else assumed,
    )


def describe(
    source: ModelSource,
    dit: DiTConfig,
    vae: VAEConfig,
    *,
    size: tuple[int, int],
    steps: int = 4,
    text_rows: int | None = None,
) -> Model:
    """What runs where weights come from ``source``, on one rank.

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


def _dit_bytes(dit: DiT, dtype: torch.dtype, *, without: Collection[str]) -> int:
    """Bytes of parameters once they are loaded in ``dtype`` (see `weights`)."""
    total = 0
    for name, tensor in dit.named_parameters():
        if name not in without:
            fixed = tensor.dtype == FP8 or name.endswith(_SCALE)
            total += tensor.numel() * (tensor.dtype if fixed else dtype).itemsize
    return total


class _Session:
    """Sizes of everything that a session keeps or makes."""

    def __init__(self, model: Model, machine: Machine, vae: VAE) -> None:
        self.model, self.machine, self.vae = model, machine, vae
        height, width = model.size
        rows, self.columns = latent_size(height, width)
        ranks = model.split.ranks
        self.rows = _share(rows, ranks)  # of the VAE's part on a rank
        self.pixels = 8 * self.rows * width
        config = model.dit
        grid = LATENT_FRAMES, rows // config.patch_size[1], self.columns // config.patch_size[2]
        per_frame = grid[1] * grid[2]
        tokens = _share(LATENT_FRAMES * per_frame, ranks)
        # A shard may begin and end within a frame.
        frames = LATENT_FRAMES if ranks == 1 else min(LATENT_FRAMES, tokens // per_frame + 2)
        given = self.given = config.text_len if model.text_rows is None else model.text_rows
        self.latent = config.out_dim * LATENT_FRAMES * rows * self.columns  # numbers
        self.dit = DiTMemory(
            config=config,
            machine=machine,
            fp8=model.fp8,
            tokens=tokens,
            frames=frames,
            text_rows=given + (given < config.text_len),
            split=model.split,
        )
        decoder = self._stream(Ledger())
        decoder.warm(MOTION_LATENTS, self.rows, self.columns)
        blocks = config.num_layers * 6 * config.dim + 2 * config.dim
        constant = (2 * config.out_dim + MASK_CHANNELS) * self.latent // config.out_dim
        motion = MOTION_LATENTS * self.latent // LATENT_FRAMES
        self.caches = {
            "K/V of text, image": self.dit.context_kv,
            "K/V of audio": self.dit.audio_kv,
            "condition tokens": self.dit.hidden,
            "RoPE tables": tokens * config.head_dim * FP32,
            "modulations": model.steps * blocks * FP32,
            "decoder state": decoder.state,
            "avatar, motion": FP32 * (given * config.text_dim + config.image_len * config.image_dim)
            + machine.item * (constant + motion),
        }

    def phases(self) -> dict[str, Peak]:
        """Peak of every phase of a chunk, in the order in which they come."""
        return {
            "portrait": self._portrait(),
            "prepare": self._prepare(),
            "audio encoder": self._audio_encoder(),
            "audio K/V": self._audio_kv(),
            "denoise": self._denoise(),
            "decode": self._decode(),
            "colour": self._colour(),
            "to host": self._to_host(),
            "encode": self._encode(),
            "warm decoder": self._warm(),
        }

    @property
    def beside(self) -> int:
        """The most that the side stream holds; over several ranks it warms up no decoder."""
        ledger = Ledger()
        if self.model.split.ranks == 1:
            self._stream(ledger).warm(MOTION_LATENTS, self.rows, self.columns)
        return max(ledger.peak.total, self._audio_encoder().total)

    def _stream(self, ledger: Ledger) -> VaeLedger:
        return VaeLedger(self.vae, self.machine, ledger, ranks=self.model.split.ranks)

    @property
    def _windows(self) -> int:
        """Bytes of the chunk's audio windows, which live as long as the chunk."""
        config = self.model.dit
        return FP32 * CHUNK_FRAMES * config.audio_window * config.audio_features

    def _frames(self, count: int, item: int | None = None) -> int:
        """Bytes of so many frames, by default in the model's dtype."""
        return COLORS * count * self.pixels * (self.machine.item if item is None else item)

    @property
    def _last_frames(self) -> int:
        """What the chunk's loop names while it goes on: decoded, coloured, joined with the tail."""
        return self._frames(2 * FRAMES_PER_LATENT + MOTION_FRAMES + FRAMES_PER_LATENT)

    def _portrait(self) -> Peak:
        """An avatar is made, of given embeddings, while the whole model is loaded."""
        given = self.given * self.model.dit.text_dim
        image = self.model.dit.image_len * self.model.dit.image_dim
        ledger = Ledger(FP32 * (given + image) - sum(self.caches.values()))
        ledger.take(self._frames(CHUNK_FRAMES + 2))  # the portrait, grey, and both as a video
        stream = self._stream(ledger)
        for _ in range(3):  # later pieces are like the third
            stream.encode_step(8 * self.rows, 8 * self.columns)
        return ledger.peak

    def _prepare(self) -> Peak:
        """Start of a session: one cache after another is made."""
        caches = self.caches
        ledger = Ledger(caches["avatar, motion"] - sum(caches.values()))
        self.dit.prepare_steps(ledger)
        ledger.take(
            sum(caches[name] for name in ("condition tokens", "RoPE tables", "modulations"))
        )
        self.dit.prepare_context(ledger)
        self._stream(ledger).warm(1, self.rows, self.columns)
        return ledger.peak

    def _audio_encoder(self) -> Peak:
        ledger = Ledger()
        encode_audio(self.model.audio, self.machine, ledger)
        return ledger.peak

    def _audio_kv(self) -> Peak:
        ledger = Ledger(self._windows)
        self.dit.prepare_audio(ledger)
        return ledger.peak

    def _denoise(self) -> Peak:
        # The noisy and the clean latent and the noise, and the latent in the model's dtype.
        ledger = Ledger(self._windows + self.latent * (2 * FP32 + self.machine.item))
        self.dit.step(ledger)
        return ledger.peak

    def _decode(self) -> Peak:
        latents = self.latent * (FP32 + self.machine.item)
        ledger = Ledger(self._windows + latents + self._last_frames)
        stream = self._stream(ledger)
        stream.warm(MOTION_LATENTS, self.rows, self.columns)
        steady = Ledger(ledger.held - stream.state)  # the state is among the caches
        stream.ledger = steady
        stream.decode_step(self.rows, self.columns)
        return steady.peak

    def _colour(self) -> Peak:
        """`match_color`: four fp32 tensors and a mask beside the frames."""
        latents = self.latent * (FP32 + self.machine.item)
        ledger = Ledger(self._windows + latents + self._last_frames)
        ledger.take(self._frames(FRAMES_PER_LATENT, 4 * FP32 + 1))
        return ledger.peak

    def _to_host(self) -> Peak:
        """`to_uint8`: two or three fp32 tensors at a time."""
        latents = self.latent * (FP32 + self.machine.item)
        ledger = Ledger(self._windows + latents + self._last_frames)
        tensors = 2 if self.machine.item == FP32 else 3
        ledger.take(self._frames(FRAMES_PER_LATENT, tensors * FP32))
        return ledger.peak

    def _encode(self) -> Peak:
        latents = self.latent * (FP32 + self.machine.item)
        before = self._windows + latents + self._last_frames - self.caches["decoder state"]
        ledger = Ledger(before)
        stream = self._stream(ledger)
        for _ in range(MOTION_LATENTS):
            stream.encode_step(8 * self.rows, 8 * self.columns)
        return ledger.peak

    def _warm(self) -> Peak:
        latents = self.latent * (FP32 + self.machine.item)
        before = self._windows + latents + self._last_frames - self.caches["decoder state"]
        ledger = Ledger(before)
        self._stream(ledger).warm(MOTION_LATENTS, self.rows, self.columns)
        return ledger.peak


def _share(count: int, ranks: int) -> int:
    """The largest rank's share."""
    return -(-count // ranks)
