"""All trainings by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from .audio.task import audio_training
from .chunks.trainings import distill_training, teacher_training
from .data.clips import Clips
from .demo import Kind
from .loop.training import About, Training
from .settings import Run
from .vae.task import vae_training

Maker = Callable[[Run, Clips, About], Training]

TRAININGS: Mapping[Kind, Maker] = MappingProxyType(
    {
        "vae": lambda run, clips, about: vae_training(run, clips),
        "audio": lambda run, clips, about: audio_training(run, clips),
        "teacher": teacher_training,
        "distill": distill_training,
    }
)


def make_training(about: About, run: Run, clips: Clips) -> Training:
    """Set up a run's training.

    Raises:
        UserError: The clips or what it builds on are unusable.
    """
    return TRAININGS[about.kind](run, clips, about)
