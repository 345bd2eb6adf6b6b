"""The time of a chunk: stages and their parts in seconds, from work, layout and machine.

Stages on the main lane run sequentially. Work on a side stream shares the GPU, so it is free only
while the main stream waits for messages or for launches; the rest of it is added.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from livetalk_kernels.runtime.slices import Slices
from livetalk_kernels.runtime.timed_comm import COMMUNICATION
from livetalk_kernels.spec import ATTENTION, LINEARS

from ..config import (
    CHUNK_FRAMES,
    LATENT_FRAMES,
    NEW_FRAMES,
    AudioEncoderConfig,
    DiTConfig,
    Preset,
    VAEConfig,
)
from ..dry_run.record import (
    AUDIO,
    AUDIO_KV,
    DECODE,
    DENOISE,
    ENCODE,
    TO_HOST,
    WARM,
)
from ..dry_run.work import attention_messages
from ..picture_size import check_size
from ..vae import COLORS, SPATIAL
from .dit_work import (
    DTYPES,
    Share,
    audio_encoder_work,
    audio_work,
    session_work,
    step_work,
)
from .layout import Layout, exchanged, head_groups, ring_seconds
from .machine import Machine
from .systems import Schedule
from .vae_work import FIRST, colour_work, vae_messages, vae_stage, vae_work
from .work import ALL, GAPS, Attention, Parts, Work, total

FPS = 25.0
REAL_TIME = NEW_FRAMES / FPS  # seconds of video per chunk
DECODE_BORDER, ENCODE_BORDER = 2, 1  # latents that a published tile adds at each inner side
FP32 = 4

Seconds = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to make, and with which system.

    Attributes:
        dit: Transformer.
        vae: VAE.
        encoder: Audio encoder.
        size: Height and width of the picture.
        steps: Denoising steps per chunk.
        itemsize: Bytes per value of DiT and VAE.
        fp8: Whether the blocks' linear layers are in FP8.
        graphs: Whether steps are replayed from CUDA graphs.
        schedule: How the system works.
        latent_frames: Latent frames per chunk.
    """

    dit: DiTConfig
    vae: VAEConfig
    encoder: AudioEncoderConfig
    size: tuple[int, int]
    steps: int = 4
    itemsize: int = 2
    fp8: bool = False
    graphs: bool = False
    schedule: Schedule = field(default_factory=Schedule)
    latent_frames: int = LATENT_FRAMES

    def __post_init__(self) -> None:
        """Reject impossible sizes."""
        check_size(self.size)

    @classmethod
    def of(cls, preset: Preset, size: tuple[int, int] | None = None, **given: object) -> "Job":
        """Build the job of a preset at a size, by default its own."""
        return cls(
            dit=preset.dit,
            vae=preset.vae,
            encoder=preset.audio,
            size=size or preset.size,
            **given,  # type: ignore[arg-type]
        )

    @property
    def latent(self) -> tuple[int, int]:
        """Rows and columns of a latent."""
        return self.size[0] // SPATIAL, self.size[1] // SPATIAL

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Tokens as frames, rows and columns."""
        _, rows, columns = self.dit.patch_size
        return self.latent_frames, self.latent[0] // rows, self.latent[1] // columns

    @property
    def tokens(self) -> int:
        """Total number of tokens."""
        frames, rows, columns = self.token_grid
        return frames * rows * columns

    @property
    def pixels(self) -> int:
        """Pixels per frame."""
        return self.size[0] * self.size[1]


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Times of a chunk that is not the first, in seconds.

    Attributes:
        stages: Stage -> part -> seconds on the main lane, in execution order.
        beside: Work on a side stream -> its seconds.
        added: How much of that prolongs the chunk.
        step: Seconds of one denoising step.
        startup: From a loaded model and an avatar file to the first new frames.
    """

    stages: Mapping[str, Seconds]
    beside: Seconds
    added: float
    step: float
    startup: float

    @property
    def chunk(self) -> float:
        """Seconds of a chunk."""
        return sum(sum(parts.values()) for parts in self.stages.values()) + self.added

    @property
    def fps(self) -> float:
        """New frames per second."""
        return NEW_FRAMES / self.chunk

    @property
    def real_time(self) -> float:
        """Seconds of video per second, at 25 frames per second."""
        return REAL_TIME / self.chunk

    def stage(self, name: str) -> float:
        """Return the seconds of a stage."""
        return sum(self.stages.get(name, {}).values())

    @property
    def bottleneck(self) -> tuple[str, float]:
        """The part that takes longest, and its fraction of the chunk."""
        stage, part, seconds = max(
            (
                (stage, part, seconds)
                for stage, parts in self.stages.items()
                for part, seconds in parts.items()
            ),
            key=lambda entry: entry[2],
        )
        name = stage if part == ALL else f"{stage}: {part}"
        return name, seconds / self.chunk


def forecast(job: Job, layout: Layout, machine: Machine) -> Forecast:
    """Forecast a chunk on the busiest rank."""
    step = step_seconds(job, layout, machine)
    stages: dict[str, Seconds] = {}
    beside: Seconds = {}
    audio = {ALL: _audio_encoder(job, machine)}
    side = machine.lanes and job.schedule.overlap
    if side:
        beside[AUDIO] = sum(audio.values())
    else:
        stages[AUDIO] = audio
    if job.schedule.once:
        stages[AUDIO_KV] = _audio_kv(job, layout, machine)
    stages[DENOISE] = {part: job.steps * seconds for part, seconds in step.items()}
    warm = vae_seconds(job, layout, machine, WARM)
    stages[DECODE] = vae_seconds(job, layout, machine, DECODE)
    stages.update(_frames(job, layout, machine))
    stages[ENCODE] = vae_seconds(job, layout, machine, ENCODE)
    if side and layout.world == 1:
        beside[WARM] = sum(warm.values())
    elif warm:
        stages[WARM] = warm
    idle = stages[DENOISE][COMMUNICATION] + stages[DENOISE][GAPS]
    # The host's part of the audio encoder does not occupy the GPU.
    busy = sum(beside.values()) - (machine.costs.loudness if AUDIO in beside else 0.0)
    return Forecast(
        stages=stages,
        beside=beside,
        added=max(0.0, busy - idle),
        step=sum(step.values()),
        startup=_startup(job, layout, machine, sum(audio.values()), sum(step.values())),
    )


def _timed(job: Job, machine: Machine, parts: Parts) -> Seconds:
    """Time every part, and the gaps that launches leave."""
    found = {
        name: machine.seconds(work, job.schedule.attention)
        for name, work in parts.items()
        if name != GAPS
    }
    glue = parts.get(GAPS, Work())
    busy = machine.seconds(glue)
    calls = total(parts.values()).calls
    found[GAPS] = busy + machine.gaps(calls, busy + sum(found.values()), graphs=job.graphs)
    return found


def _plain(job: Job, machine: Machine, parts: Parts) -> float:
    return sum(_timed(job, machine, parts).values())


def _audio_encoder(job: Job, machine: Machine) -> float:
    work = audio_encoder_work(job.encoder)[ALL]
    busy = machine.encoder(work)
    return machine.costs.loudness + busy + machine.gaps(work.calls, busy)


def step_seconds(job: Job, layout: Layout, machine: Machine) -> Seconds:
    """Time the parts of one denoising step, with as many forward passes as it takes."""
    config, mesh, schedule = job.dit, layout.mesh, job.schedule
    share = Share.of(mesh, job.tokens, config.num_heads)
    parts = step_work(config, job.token_grid, share, schedule, itemsize=job.itemsize, fp8=job.fp8)
    found = _timed(job, machine, parts)
    found[COMMUNICATION] = 0.0
    if mesh.world > 1:
        found[COMMUNICATION] = _exchanges(job, layout, machine, share, found[ATTENTION])
    return {part: schedule.forwards * seconds for part, seconds in found.items()}


def _exchanges(job: Job, layout: Layout, machine: Machine, share: Share, computed: float) -> float:
    """Compute what messages around self-attention, packing and the final gather add to a step."""
    config, mesh, schedule = job.dit, layout.mesh, job.schedule
    layers, width = config.num_layers, config.head_dim
    sent = attention_messages(
        mesh,
        0,
        tokens=job.tokens,
        heads=config.num_heads,
        head_dim=width,
        dtype=DTYPES[job.itemsize],
    )
    attend = computed / layers
    row = width * job.itemsize
    if mesh.ring > 1:
        pass_on = machine.transfer(sent["ring"] / (mesh.ring - 1), 1, layout.far_ring)
        inside = ring_seconds(attend / mesh.ring, pass_on, mesh.ring)
        merged = (mesh.ring - 1) * share.block * share.heads * width * (job.itemsize + 8)
        inside += machine.seconds(Work(bytes=float(merged)))
    else:
        inside = attend
    elapsed = inside
    if mesh.ulysses > 1:
        groups = [share.heads]
        if machine.lanes and schedule.overlap:
            groups = head_groups(mesh, config.num_heads, share.heads)
        to = 3 * share.tokens * (config.num_heads - share.heads) * row
        back = sent["all_to_all"] - to
        far = layout.far_heads
        shares = [heads / share.heads for heads in groups]
        send = [machine.transfer(to * part, 1, far) for part in shares]
        give = [machine.transfer(back * part, 1, far) for part in shares]
        attends = (
            [inside]
            if len(groups) == 1
            else [
                machine.seconds(
                    Work(
                        attentions=(
                            Attention(
                                queries=share.block,
                                keys=share.total,
                                heads=heads,
                                width=width,
                                itemsize=job.itemsize,
                            ),
                        )
                    ),
                    schedule.attention,
                )
                for heads in groups
            ]
        )
        elapsed = exchanged(send, attends, give)
    passes = 10 if schedule.overlap else 16  # make v contiguous, place pieces, join
    packed = machine.seconds(Work(bytes=float(passes * share.tokens * config.dim * job.itemsize)))
    outputs = config.out_dim * math.prod(config.patch_size)  # per token, in fp32
    gathered = (mesh.world - 1) * share.tokens * outputs * FP32
    last = machine.transfer(gathered, 1, layout.far_all)
    return layers * (elapsed - attend + packed) + last


def vae_slice(job: Job, layout: Layout, border: int) -> tuple[int, int]:
    """Return rows and columns of the latent that the busiest rank works on."""
    sizes = []
    for length, count in zip(job.latent, (layout.grid.rows, layout.grid.columns), strict=True):
        extra = 2 * border if job.schedule.tiles and count > 1 else 0
        sizes.append(min(length, -(-length // count) + extra))
    return sizes[0], sizes[1]


def vae_seconds(job: Job, layout: Layout, machine: Machine, name: str) -> Seconds:
    """Time the parts of a VAE stage; none if the schedule lacks it."""
    schedule = job.schedule
    rows, columns = vae_slice(job, layout, ENCODE_BORDER if name == ENCODE else DECODE_BORDER)
    keys = rows * columns if schedule.tiles else job.latent[0] * job.latent[1]
    parts = _vae_work(job, name, (rows, columns), keys)
    if not parts:
        return {}
    found = _timed(job, machine, parts)
    if layout.world == 1:
        return found
    if schedule.tiles:
        frames = CHUNK_FRAMES * SPATIAL**2 * COLORS if name == DECODE else 2 * job.vae.z_dim
        size = (layout.world - 1) * rows * columns * frames * job.itemsize
        found[COMMUNICATION] = machine.transfer(size, 1, layout.far_all)
        return found
    stage = vae_stage(job.vae, name, reuse=True, itemsize=job.itemsize)
    slices = Slices(grid=layout.grid, size=job.latent)
    sent = vae_messages(job.vae, name, slices, itemsize=job.itemsize)
    found[COMMUNICATION] = machine.transfer(
        sent["halo"], stage.convolutions, layout.far_halo(slices)
    ) + machine.transfer(sent["gather"], stage.frames, layout.far_all)
    return found


def _vae_work(job: Job, name: str, size: tuple[int, int], keys: int) -> Parts:
    return vae_work(
        job.vae,
        name,
        size,
        keys=keys,
        itemsize=job.itemsize,
        reuse=job.schedule.once,
        fuse_bias=job.schedule.fuse_bias,
    )


def _audio_kv(job: Job, layout: Layout, machine: Machine) -> Seconds:
    config, (frames, rows, columns) = job.dit, job.token_grid
    tokens = Share.of(layout.mesh, job.tokens, config.num_heads).tokens
    heard = frames if layout.world == 1 else min(frames, tokens // (rows * columns) + 2)
    work = audio_work(config, job.token_grid, heard, itemsize=job.itemsize)
    seconds = _plain(job, machine, {ALL: work})
    windows = FP32 * CHUNK_FRAMES * config.audio_window * config.audio_features
    if layout.world > 1:
        seconds += machine.transfer((layout.world - 1) * windows, 1, layout.far_all)
    return {ALL: seconds}


def _frames(job: Job, layout: Layout, machine: Machine) -> dict[str, Seconds]:
    """Time ``colour`` and ``to host``: for a slice, or as published, all of it on each rank."""
    whole = job.schedule.tiles
    pixels = job.pixels if whole else -(-job.pixels // layout.world)
    extra = CHUNK_FRAMES / NEW_FRAMES if whole else 1  # the motion frames are still included
    found = {}
    for name, parts in colour_work(job.vae, pixels, itemsize=job.itemsize).items():
        work = replace(parts[ALL], bytes=parts[ALL].bytes * extra)
        found[name] = {ALL: _plain(job, machine, {ALL: work})}
    frames = COLORS * NEW_FRAMES * job.pixels  # bytes
    if job.schedule.pageable:
        found[TO_HOST][ALL] += frames * FP32 / machine.costs.pageable
    elif layout.world > 1:  # rank 0 collects; its copy to the host is hidden
        collected = frames * (layout.world - 1) / layout.world
        found[TO_HOST][COMMUNICATION] = machine.transfer(collected, 7, layout.far_all)
    return found


def _startup(job: Job, layout: Layout, machine: Machine, audio: float, step: float) -> float:
    """Time preparing a session, denoising the first chunk, and decoding its first latent."""
    share = Share.of(layout.mesh, job.tokens, job.dit.num_heads)
    prepare = session_work(
        job.dit,
        job.token_grid,
        share.tokens,
        itemsize=job.itemsize,
        fp8=job.fp8,
        steps=job.steps,
    )
    first = sum(vae_seconds_first(job, layout, machine).values())
    if job.schedule.once:
        first += sum(_audio_kv(job, layout, machine).values()) + _plain(
            job, machine, {LINEARS: prepare}
        )
    latents = job.latent_frames - 2
    frames = sum(sum(parts.values()) for parts in _frames(job, layout, machine).values())
    frames /= latents if job.schedule.once else 1
    return audio + job.steps * step + first + frames


def vae_seconds_first(job: Job, layout: Layout, machine: Machine) -> Seconds:
    """Time decoding up to the first new frames; as published, that is the whole chunk."""
    if not job.schedule.once:
        return vae_seconds(job, layout, machine, DECODE)
    rows, columns = vae_slice(job, layout, 0)
    keys = job.latent[0] * job.latent[1]
    parts, warm = (_vae_work(job, name, (rows, columns), keys) for name in (FIRST, WARM))
    found = _timed(job, machine, parts)
    found[WARM] = _plain(job, machine, warm) / 2  # the portrait's latent, one of two
    if layout.world > 1:
        share = vae_seconds(job, layout, machine, DECODE)[COMMUNICATION] / (LATENT_FRAMES - 2)
        found[COMMUNICATION] = 3 * share
    return found
