"""All trainings by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from .audio.task import audio_training
from .chunks.trainings import distill_training, teacher_training
from .data.clips import Clips
from .demo import Kind
from .loop.place import Place
from .loop.training import About, Training
from .settings import Run
from .vae.task import vae_training

Maker = Callable[[Run, Clips, About, Place], Training]

TRAININGS: Mapping[Kind, Maker] = MappingProxyType(
    {
        "vae": lambda run, clips, about, place: vae_training(run, clips, place),
        "audio": lambda run, clips, about, place: audio_training(run, clips, place),
        "teacher": teacher_training,
        "distill": distill_training,
    }
)


def make_training(about: About, run: Run, clips: Clips, place: Place | None = None) -> Training:
    """Set up a run's training.

    Args:
        about: What is trained, from what.
        run: The settings.
        clips: The data.
        place: The device and the ranks; by default one alone, on the CPU.

    Raises:
        UserError: The clips or what it builds on are unusable.
    """
    return TRAININGS[about.kind](run, clips, about, place or Place())
