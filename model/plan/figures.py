"""Published figures of other systems, and how those differ from livetalk.

Forecasts are validated against them (``livetalk plan --validate``), and shares are fitted to them.
None was measured by this project.
"""

from dataclasses import dataclass, field, replace

from livetalk_kernels.gpus import FA2, FA3
from livetalk_kernels.runtime.mesh import Grid, Mesh

from ..config import get_preset
from ..dry_run.record import COLOUR, DECODE, ENCODE
from .forecast import Job, forecast, step_seconds, vae_seconds
from .layout import Layout
from .machine import GpuMachine
from .systems import Schedule

STEP, CHUNK = "step", "chunk"
SIZE = (768, 448)
WAN_SIZE, WAN_LATENTS = (480, 832), 21  # 81 frames
WAN_FORWARD_TFLOP = 1683.0  # published; see `wan_job`

PUBLISHED = Schedule(
    once=False,
    fused_rope=False,
    attention=FA2,
    overlap=False,
    tiles=True,
    pageable=True,
)
SGLANG = replace(PUBLISHED, fused_rope=True, attention=FA3)
LIGHTX2V = Schedule(once=False, overlap=False, attention=FA3, audio=False, forwards=2)

_REPORT = "SoulX-FlashTalk technical report (arXiv 2512.23379): 8 x H800"
_A100 = "SoulX-FlashTalk issue 3: log of a run on 8 x A100"
_SGLANG = "SGLang pull request 19229: 8 x H20, FlashTalk 14B, steady state"
_LIGHTX2V = "LightX2V, README: Wan2.1-I2V-14B-480P on H100, 81 frames, with guidance"
_CODE = (
    "published code: constants anew in every step and whole on each rank, RoPE in complex128, VAE "
    "in overlapping tiles"
)
_FLASH2 = "FlashAttention 2, which its README installs"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One published time.

    Attributes:
        name: Display name.
        gpu: Type of GPU.
        ranks: Number of GPUs.
        what: ``step``, ``chunk``, or a stage.
        seconds: Observed.
        source: Title of the source.
        settings: What this row's system does, and why that is assumed.
        job: The same, for the forecast.
        doubt: What the forecast does not know about it; shown if it misses the goal.
    """

    name: str
    gpu: str
    ranks: int
    what: str
    seconds: float
    source: str
    settings: str
    job: Job
    doubt: str

    def overlaps(self, other: "Figure") -> bool:
        """Return whether either figure includes the other, as a chunk of the same run does."""
        same = (self.source, self.job, self.ranks) == (other.source, other.job, other.ranks)
        return self is other or (same and CHUNK in (self.what, other.what))

    def predict(self, machine: GpuMachine) -> float:
        """Predict the seconds on a machine with this GPU."""
        layout = Layout(
            mesh=Mesh(ulysses=self.ranks, ring=1), grid=Grid.choose(self.ranks, self.job.latent)
        )
        if self.what == STEP:
            return sum(step_seconds(self.job, layout, machine).values())
        if self.what in (DECODE, ENCODE):
            return sum(vae_seconds(self.job, layout, machine, self.what).values())
        found = forecast(self.job, layout, machine)
        return found.stage(COLOUR) if self.what == COLOUR else found.chunk


def _talk(schedule: Schedule, *, fp8: bool = False) -> Job:
    return Job.of(get_preset("14b"), SIZE, schedule=schedule, fp8=fp8)


def wan_job() -> Job:
    """Describe Wan2.1 14B at 832 x 480, 81 frames: the same transformer without audio."""
    return Job.of(get_preset("14b"), WAN_SIZE, schedule=LIGHTX2V, latent_frames=WAN_LATENTS)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    source: str
    gpu: str
    settings: str
    job: Job
    ranks: int = 8
    doubts: dict[str, str] = field(default_factory=dict)

    def row(self, name: str, what: str, seconds: float) -> Figure:
        return Figure(
            name=name,
            gpu=self.gpu,
            ranks=self.ranks,
            what=what,
            seconds=seconds,
            source=self.source,
            settings=self.settings,
            job=self.job,
            doubt=self.doubts[what],
        )


_UNKNOWN_CLOCKS = "clocks, power limits and versions of that machine are not known"


def figures() -> tuple[Figure, ...]:
    """Return all figures, in the order of the list."""
    h800 = _Rows(
        source=_REPORT,
        gpu="h800",
        settings=f"{_CODE}; FlashAttention 3, which the code takes where it is installed (assumed)",
        job=_talk(replace(PUBLISHED, attention=FA3)),
        doubts={
            CHUNK: "the report does not say what the sum covers (waits between stages, audio, "
            "copies) nor which attention ran; with FlashAttention 2 the forecast is higher"
        },
    )
    a100 = _Rows(
        source=_A100,
        gpu="a100",
        settings=f"{_CODE}; {_FLASH2}",
        job=_talk(PUBLISHED),
        doubts={
            STEP: _UNKNOWN_CLOCKS,
            DECODE: "cuDNN's algorithms for planar bf16 differ by shape; one share represents all",
            ENCODE: "20 ms of small kernels: one share of the matrix rate represents all of them",
            COLOUR: "the published colour code runs other elementwise passes than ours, which are "
            "what is counted, and 11 ms of them follow launches as much as bytes",
        },
    )
    h20 = _Rows(
        source=_SGLANG,
        gpu="h20",
        settings=f"{_CODE}; {_FLASH2}",
        job=_talk(PUBLISHED),
        doubts={STEP: _UNKNOWN_CLOCKS, CHUNK: "what the total holds besides stages is not said"},
    )
    sglang = "SGLang: RoPE fused, FlashAttention 3, keys and values anew every step (all assumed)"
    bf16 = _Rows(
        source=_SGLANG,
        gpu="h20",
        settings=sglang,
        job=_talk(SGLANG),
        doubts={STEP: _UNKNOWN_CLOCKS},
    )
    fp8 = _Rows(
        source=_SGLANG,
        gpu="h20",
        settings=f"{sglang}; linear layers in FP8 by DeepGEMM, blocks of 128 x 128",
        job=_talk(SGLANG, fp8=True),
        doubts={STEP: "the rate of FP8 products on an H20 is assumed, not measured"},
    )
    one = _Rows(
        source=_LIGHTX2V,
        gpu="h100",
        settings="LightX2V: two forwards, FlashAttention 3 (assumed), text and image keys anew",
        job=wan_job(),
        ranks=1,
        doubts={STEP: _UNKNOWN_CLOCKS},
    )
    doubts = {STEP: "whether the two forwards ran on four GPUs each is not said"}
    eight = replace(one, ranks=8, doubts=doubts)
    return (
        h800.row("8xH800 chunk, published", CHUNK, 0.875),
        a100.row("8xA100 step, published", STEP, 0.336),
        a100.row("8xA100 decode, published", DECODE, 0.249),
        a100.row("8xA100 encode, published", ENCODE, 0.022),
        a100.row("8xA100 colour, published", COLOUR, 0.011),
        h20.row("8xH20 step, published", STEP, 0.702),
        h20.row("8xH20 chunk, published", CHUNK, 3.37),
        bf16.row("8xH20 step, SGLang", STEP, 0.567),
        fp8.row("8xH20 step, SGLang FP8", STEP, 0.366),
        one.row("1xH100 Wan2.1 step, LightX2V", STEP, 5.18),
        eight.row("8xH100 Wan2.1 step, LightX2V", STEP, 0.75),
    )
