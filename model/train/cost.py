"""Estimates what training takes: memory and time on N GPUs, from formulas.

Memory is that of sharded states and one GPU's working set; time is the transformer's floating-point
operations over a rate, ignoring the VAE, a few per cent. Both are arithmetic, not measurements.

Sources: SoulX-FlashTalk (arXiv 2512.23379) for what is trained; nanxiaolu/FlashTalk-Training-Code
for two timed runs.
"""

from dataclasses import dataclass, replace
from typing import Literal

from livetalk_kernels.gpus import Gpu, get_gpu

from ..config import LATENT_FRAMES, DiTConfig
from ..dry_run.work import dit_flops

Optimizer = Literal["adamw", "adamw8bit"]

SHARE = 0.5
"""Fraction of large products' rate on a GPU that a whole update achieves, with exchanges and data.

Assumed: a round number, which yields 9.1 h for a run that took 9.
"""
SIZE = (720, 416)
"""Height and width of training pictures; the paper only says that they are low."""
PASSES = 4
"""Cost of a step with gradients in forward passes: forward, recomputed, and backward as two."""
SAMPLER_STEPS = 4
_FP32, _BF16, _STATES = 4, 2, {"adamw": 8, "adamw8bit": 2}  # bytes per parameter
_KEPT = 1  # hidden states [L, D] that a block keeps; everything else is recomputed
_BLOCK = 12  # the same while a block is recomputed and differentiated, in addition to [L, F]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a training.

    Attributes:
        name: Display name.
        learning: Networks that learn.
        frozen: Networks that do not learn.
        updates: Updates of the network that learns all the time.
        every: Updates of that per update of the student; 0 without a student.
        batch: Samples per update.
        chunks: K: the chunk that learns is one of the first K.
    """

    name: str
    learning: int
    frozen: int
    updates: int
    every: int = 0
    batch: int = 32
    chunks: int = 1

    @property
    def forwards(self) -> float:
        """Cost of the whole stage in forward passes, for one sample of each batch."""
        if not self.every:
            return self.updates * PASSES
        before = (self.chunks - 1) / 2 * SAMPLER_STEPS + (SAMPLER_STEPS - 1) / 2
        critic = before + 1 + PASSES
        student = before + PASSES + 3 + 1  # the real score has guidance, the fake one does not
        return self.updates * critic + self.updates // self.every * student


TEACHER = Stage(name="stage 1", learning=1, frozen=0, updates=1000)
STUDENT = Stage(name="stage 2", learning=2, frozen=1, updates=200, every=5, chunks=5)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a stage.

    Attributes:
        stage: The stage.
        states: Bytes per GPU of parameters, gradients and optimiser states.
        work: Bytes per GPU of gathered parameters and activations for one sample.
        seconds: Seconds of the whole stage.
        flops: Floating-point operations of the whole stage.
    """

    stage: Stage
    states: float
    work: float
    seconds: float
    flops: float

    @property
    def memory(self) -> float:
        """Bytes per GPU."""
        return self.states + self.work


def cost(
    stage: Stage,
    config: DiTConfig,
    parameters: int,
    gpu: Gpu,
    gpus: int,
    *,
    size: tuple[int, int],
    optimizer: Optimizer = "adamw",
) -> Cost:
    """Forecast a stage.

    Args:
        stage: What is trained.
        config: Shape of the transformer.
        parameters: Its parameters.
        gpu: Type of GPU.
        gpus: Number of GPUs that share parameters, gradients and states.
        size: Height and width of the pictures.
        optimizer: AdamW with 32-bit or 8-bit states.
    """
    grid = LATENT_FRAMES, size[0] // 16, size[1] // 16
    flops = dit_flops(config, grid)
    forward = flops.step + flops.chunk + flops.session
    total = float(stage.forwards * stage.batch * forward)
    return Cost(
        stage=stage,
        states=states(stage, optimizer) * parameters / gpus,
        work=work(config, grid),
        seconds=total / (gpus * SHARE * gpu.matmul.value),
        flops=total,
    )


def states(stage: Stage, optimizer: Optimizer) -> int:
    """Count the bytes that a stage keeps per parameter of the network.

    Each network that learns has float32 weights and two states; gradients are those of one at a
    time; frozen networks are in bf16.
    """
    return stage.learning * (_FP32 + _STATES[optimizer]) + _FP32 + stage.frozen * _BF16


def work(config: DiTConfig, grid: tuple[int, int, int]) -> float:
    """Count a GPU's bytes in addition to states, for one sample: two gathered blocks, activations.

    A block keeps its input; one at a time is recomputed and differentiated.
    """
    tokens = grid[0] * grid[1] * grid[2]
    block = config.fewest_parameters / config.num_layers * _BF16
    gathered = 2 * block + block / _BF16 * _FP32  # and one block's gradients, before sharding
    row = config.dim * _BF16
    kept = config.num_layers * _KEPT * 2 * row  # the residual stream, and its increments
    inner = _BLOCK * row * 2 + 3 * config.ffn_dim * _BF16
    return gathered + tokens * (kept + inner)


@dataclass(frozen=True, kw_only=True)
class Timed:
    """A run that others have timed.

    Attributes:
        stage: What was trained.
        gpu: Type of GPU; a name in the table.
        gpus: Number of GPUs.
        size: Height and width of pictures with the mean area.
        hours: Duration.
        source: Source of the figure.
    """

    stage: Stage
    gpu: str
    gpus: int
    size: tuple[int, int]
    hours: float
    source: str


_U = "nanxiaolu/FlashTalk-Training-Code, README: 8 x A800 80 GB"
TIMED = (
    Timed(
        stage=replace(TEACHER, updates=500), gpu="a100", gpus=8, size=(624, 624), hours=9,
        source=f"{_U}, stage 1: 500 updates of 32",
    ),
    Timed(
        stage=replace(STUDENT, updates=100), gpu="a100", gpus=8, size=(624, 624), hours=10,
        source=f"{_U}, stage 2: 100 updates of 32, states on the host",
    ),
)  # fmt: skip
"""An A800 is an A100 with slower links; its pictures are of about 627 x 627 pixels."""


def forecast_of(timed: Timed, config: DiTConfig, parameters: int) -> float:
    """Forecast the hours of a timed run."""
    gpu = get_gpu(timed.gpu)
    found = cost(timed.stage, config, parameters, gpu, timed.gpus, size=timed.size)
    return found.seconds / 3600
