"""Runs a chunk of a stream on the meta device with the model's own code, and records its costs.

One rank is run, with a communicator that counts but sends nothing. All blocks of a transformer
except the first are alike, so it is run with one and with two, and the second represents the rest.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from livetalk_kernels.precision import FP8
from livetalk_kernels.runtime.comm import LocalCommunicator
from livetalk_kernels.runtime.mesh import Mesh
from livetalk_kernels.runtime.sequence_parallel import SequenceParallel
from livetalk_kernels.runtime.slices import Padding
from livetalk_kernels.runtime.solo import SoloCommunicator

from ..avatar import Avatar, before_grey
from ..color import ColorStats, match_color
from ..config import (
    FRAMES_PER_LATENT,
    LATENT_FRAMES,
    MOTION_FRAMES,
    MOTION_LATENTS,
    AudioEncoderConfig,
    DiTConfig,
    VAEConfig,
)
from ..dit import DiT
from ..encoders.audio import AudioEncoder, interpolate
from ..encoders.wav2vec2 import Wav2Vec2
from ..sampler import denoise, timesteps
from ..stream.chunk import to_uint8
from ..stream.stats import StageClock
from ..stream.work import WorkOnce
from ..vae import COLORS, SPATIAL, TEMPORAL, VAE, DecoderCache, EncoderCache
from .recorder import META, Peak, Phase, Recorder, Slice
from .storages import storages

PORTRAIT, PREPARE, AUDIO, AUDIO_KV = "portrait", "prepare", "audio encoder", "audio K/V"
DENOISE, DECODE, COLOUR, TO_HOST = "denoise", "decode", "colour", "to host"
ENCODE, WARM = "encode", "warm decoder"
NEXT, SECOND = "second motion latent", "first new latent"
ALONE = Mesh(ulysses=1, ring=1)
NO_HALO: Padding = (0, 0, 0, 0)
AUDIO_SECONDS = 8  # `AudioStream`'s window
VIDEO_FPS = 25
_SHIFT = 5.0  # of the timesteps, whose values are irrelevant
_KEPT = {  # cache -> attribute of `WorkOnce`
    "K/V of text, image": "_context",
    "K/V of audio": "_audio",
    "condition tokens": "_condition",
    "RoPE tables": "_norm_rope",
    "modulations": "_steps",
}


@dataclass(frozen=True, kw_only=True)
class Record:
    """The costs of a part of the model, or all of it, on one rank.

    Attributes:
        phases: Phase -> its record. ``denoise`` is one step; ``decode`` one latent in steady state,
            ``first new latent`` the one before. A first chunk warms up the decoder with the
            portrait, in ``prepare``, and ``second motion latent``. The others are complete.
        caches: Cache of a session -> bytes.
        weights: Part of the model -> bytes.
    """

    phases: Mapping[str, Phase]
    caches: Mapping[str, int]
    weights: Mapping[str, int]


@cache
def record_transformer(
    config: DiTConfig,
    grid: tuple[int, int, int],
    *,
    device: str,
    dtype: torch.dtype,
    mesh: Mesh = ALONE,
    rank: int = 0,
    fp8: bool = False,
    m_major_scales: bool = False,
    steps: int = 1,
    text_rows: int | None = None,
) -> Record:
    """Run what a session computes once, the audio's keys and values, and a step.

    Args:
        config: Shape of the transformer.
        grid: Tokens in frames, rows and columns.
        device: ``cpu`` or ``cuda``.
        dtype: Dtype of weights and activations.
        mesh: The ranks.
        rank: The rank to run.
        fp8: Whether the linear layers of the blocks are in FP8.
        m_major_scales: See `DiT`.
        steps: Steps in the schedule.
        text_rows: Rows of the prompt's embedding; by default the longest prompt's.
    """
    rows = config.text_len if text_rows is None else text_rows
    schedules = timesteps(steps, _SHIFT), timesteps(2, _SHIFT)  # the second provides steps to run

    def run(layers: int) -> Record:
        recorder = Recorder(device, dtype)
        alone = mesh.world == 1
        comm = (
            LocalCommunicator() if alone else SoloCommunicator(rank, mesh.world, recorder.traffic)
        )
        with META:
            dit = DiT(
                replace(config, num_layers=layers),
                recorder.ops,
                fp8=fp8,
                m_major_scales=m_major_scales,
                parallel=SequenceParallel(mesh, comm, recorder.ops),
            )
        _cast(dit, dtype)
        with torch.no_grad(), recorder:
            return _run_transformer(dit, recorder, grid, schedules, rows)

    one, two = run(1), run(2)
    count = config.num_layers
    return Record(
        phases={name: _extend(one.phases[name], two.phases[name], count) for name in one.phases},
        caches=_extend_counts(one.caches, two.caches, count),
        weights=_extend_counts(one.weights, two.weights, count),
    )


def _run_transformer(
    dit: DiT,
    recorder: Recorder,
    grid: tuple[int, int, int],
    schedules: tuple[Tensor, Tensor],
    text_rows: int,
) -> Record:
    config = dit.config
    patch = config.patch_size
    frames, rows, columns = (n * size for n, size in zip(grid, patch, strict=True))
    latent = config.out_dim, frames, rows, columns

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=META)

    avatar = Avatar(
        context=empty(text_rows, config.text_dim),
        clip_fea=empty(1, config.image_len, config.image_dim),
        condition=empty(*latent, dtype=dit.dtype),
        portrait=empty(COLORS, SPATIAL * rows, SPATIAL * columns, dtype=torch.uint8),
        model="",
    )
    clock = StageClock(META, phase=recorder.phase)
    recorder.held -= avatar.portrait.nbytes  # it stays on the host
    with recorder.phase(PREPARE):
        work = WorkOnce(dit, _NoVAE(), avatar, schedules[0], clock)  # type: ignore[arg-type]
    motion = empty(config.out_dim, MOTION_LATENTS, rows, columns, dtype=dit.dtype)
    window = config.audio_window, config.audio_layers, config.audio_dim
    windows = empty(1, 1 + (frames - 1) * config.vae_scale, *window)
    work.begin_chunk(windows)
    recorder.phases.pop(AUDIO_KV)  # use the next chunk's, during which this one's is still held
    work.begin_chunk(windows)

    def step(x: Tensor, index: int) -> Tensor:
        recorder.phases.pop(DENOISE, None)  # keep only the last one
        with recorder.phase(DENOISE):
            flow: Tensor = dit(x[None].to(dit.dtype), **vars(work.inputs(0)))
        return flow[0]

    denoise(
        step,
        schedules[1],
        motion,
        lambda first: empty(*latent, dtype=dit.dtype if first else torch.float32),
    )
    kept = {name: _held_bytes(vars(work)[attribute]) for name, attribute in _KEPT.items()}
    kept["avatar, motion"] = _held_bytes(
        [avatar.context, avatar.clip_fea, work.portrait_latents, work.constant, motion]
    )
    return Record(phases=recorder.phases, caches=kept, weights={"DiT": _dit_bytes(dit, recorder)})


@cache
def record_vae(
    config: VAEConfig,
    latent: tuple[int, int],
    *,
    device: str,
    dtype: torch.dtype,
    halo: Padding = NO_HALO,
    world: int = 1,
    reuse: bool = True,
    fuse_bias: bool = False,
) -> Record:
    """Run decoder, encoder and colour correction for a portrait, a first chunk and a later one.

    Args:
        config: Widths.
        latent: Rows and columns of the latent, or of a rank's slice of it.
        device: ``cpu`` or ``cuda``.
        dtype: Dtype of weights and activations.
        halo: 1 if there is a neighbour at the top, bottom, left and right, else 0.
        world: Ranks that share the picture.
        reuse: Schedule (see `VAE`); the published one warms up nothing, so that ``warm decoder`` is
            the decoding of the first two latents.
        fuse_bias: See `VAE`.
    """
    recorder = Recorder(device, dtype)
    with META:
        vae = VAE(config, recorder.ops, reuse=reuse, fuse_bias=fuse_bias)
    vae.to(dtype)
    with recorder:
        vae.prepare()
    recorder.held = 0
    with torch.no_grad(), recorder:
        caches = _run_vae(vae, recorder, Slice(recorder, latent, halo, world), latent)
    weights = {"VAE": _held_bytes([*vae.parameters(), *vae.buffers()])}
    return Record(phases=recorder.phases, caches=caches, weights=weights)


def _run_vae(vae: VAE, recorder: Recorder, halo: Slice, latent: tuple[int, int]) -> dict[str, int]:
    dtype = vae.conv1.weight.dtype
    rows, columns = latent

    def latents(count: int) -> Tensor:
        return torch.empty(1, vae.config.z_dim, count, *latent, dtype=dtype, device=META)

    picture = torch.empty(COLORS, SPATIAL * rows, SPATIAL * columns, dtype=dtype, device=META)
    with recorder.phase(PORTRAIT):
        video = before_grey(picture[None, :, None])
        encoder = EncoderCache(halo=halo)
        for start in (0, 1, 1 + TEMPORAL):  # later pieces are like the third
            piece = video[:, :, start : start + (TEMPORAL if start else 1)]
            vae.encode_step(piece, encoder)
        del video, piece, encoder
    stream = DecoderCache(halo=halo)
    for name in (PREPARE, NEXT):
        with recorder.phase(name):
            vae.warm(latents(1), stream)
    state = _held_bytes(stream.frames)
    colours = ColorStats(mean=torch.empty(3, device=META), std=torch.empty(3, device=META))
    everything = torch.empty(1, vae.config.z_dim, LATENT_FRAMES, *latent, device=META).to(dtype)
    # Like `ChunkGenerator.chunk`, whose local variables outlive their use.
    size = (SPATIAL * rows, SPATIAL * columns)
    joined = torch.empty(1, COLORS, FRAMES_PER_LATENT + MOTION_FRAMES, *size, device=META)
    joined = joined.to(dtype)
    tail = joined[:, :, -MOTION_FRAMES:]
    decoded, colored = (tail[:, :, :FRAMES_PER_LATENT].clone() for _ in range(2))
    for name in (SECOND, DECODE):
        with recorder.phase(name):
            decoded = vae.decode_step(everything[:, :, :1], stream, clamp=False)
        recorder.phases.pop(COLOUR, None)
        with recorder.phase(COLOUR):
            colored = match_color(decoded.clamp_(-1, 1), colours, 1.0, halo=halo)
            joined = torch.cat((tail, colored), dim=2)
            tail = joined[:, :, -MOTION_FRAMES:]
        recorder.phases.pop(TO_HOST, None)
        with recorder.phase(TO_HOST):
            halo.collect(to_uint8(colored[0]), (1, 2))
    del stream
    with recorder.phase(ENCODE):
        motion = vae.encode(tail, halo=halo)
        halo.gather(motion)
    stream = DecoderCache(halo=halo)
    with recorder.phase(WARM):
        vae.warm(motion, stream)
    return {"decoder state": state}


@cache
def record_audio(config: AudioEncoderConfig, device: str) -> Record:
    """Run the audio encoder over its whole window, in fp32."""

    def run(layers: int) -> Record:
        recorder = Recorder(device, torch.float32)
        with META:
            network = Wav2Vec2(replace(config, layers=layers))
        encoder = AudioEncoder(network)
        sound = torch.empty(1, AUDIO_SECONDS * config.sample_rate, device=META)
        with torch.no_grad(), recorder, recorder.phase(AUDIO):
            features = network.feature_extractor(sound)
            encoder.hidden_states(interpolate(features, VIDEO_FPS * AUDIO_SECONDS))
        weights = {AUDIO: _held_bytes(list(network.parameters()))}
        return Record(phases=recorder.phases, caches={}, weights=weights)

    one, two = run(1), run(2)
    return Record(
        phases={AUDIO: _extend(one.phases[AUDIO], two.phases[AUDIO], config.layers)},
        caches={},
        weights=_extend_counts(one.weights, two.weights, config.layers),
    )


class _NoVAE:
    """Placeholder for `WorkOnce`, whose transformer part never calls it."""

    decode_step = None


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Change dtypes like loading does: FP8 weights and their scales keep theirs."""
    for name, parameter in module.named_parameters():
        if parameter.dtype != FP8 and not name.endswith("weight_scale"):
            parameter.data = parameter.data.to(dtype)


def _dit_bytes(dit: DiT, recorder: Recorder) -> int:
    """Count the bytes of parameters on the device, following `ModelSource.spares_memory`."""
    spared = dit.avatar_parameters() if dit.fp8 and recorder.device.type == "cuda" else frozenset()
    return sum(p.nbytes for name, p in dit.named_parameters() if name not in spared)


def _held_bytes(value: Any) -> int:
    """Count the bytes of all storages reachable from a value."""
    return sum(storages([value]).values())


def _extend(one: Phase, two: Phase, count: int) -> Phase:
    """Extrapolate a phase to ``count`` layers from those with one and with two."""
    found: dict[str, Any] = {}
    for entry in fields(Phase):
        first, second = getattr(one, entry.name), getattr(two, entry.name)
        if isinstance(first, Counter):
            found[entry.name] = Counter(_extend_counts(first, second, count))
        elif isinstance(first, Peak):
            found[entry.name] = Peak(
                *(_line(a, b, count) for a, b in zip(first, second, strict=True))
            )
        else:
            found[entry.name] = _line(first, second, count)
    return Phase(**found)


def _extend_counts(one: Mapping[Any, int], two: Mapping[Any, int], count: int) -> dict[Any, int]:
    return {key: _line(one.get(key, 0), two[key], count) for key in two}


def _line(one: int, two: int, count: int) -> int:
    return one + (count - 1) * (two - one)
