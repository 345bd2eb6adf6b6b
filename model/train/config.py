"""What of the distillation is disputed, as switches with the paper's numbers as defaults."""

from dataclasses import dataclass
from typing import Literal, get_args

from livetalk_kernels.errors import UserError

History = Literal["generated", "oracle"]
ScoreMotion = Literal["clean", "noised"]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How far the real score is pushed away from conditions that are left out.

    Attributes:
        audio: Scale of the step from nothing to the audio.
        text: Scale of the step from the audio to audio and text; None: the model has no text, and
            that step is not computed.
    """

    audio: float = 4.0
    text: float | None = 3.0


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How the student is taught.

    Attributes:
        chunks: K: the chunk that learns is drawn from 1 to K, and those before it are the
            student's own.
        history: What stands before the chunk for the real score: the ``generated`` chunk that the
            student saw, or the ``oracle``, the true one.
        score_motion: Motion latents enter both scores ``clean``, or ``noised`` like the rest.
        motion_loss: The losses count the motion latents' positions too.
        regression: Factor of |student - truth|^2, which goes with the oracle.
        generator_every: Updates of the fake score per update of the student.
        guidance: Of the real score.

    Raises:
        UserError: A value is out of range.
    """

    chunks: int = 5
    history: History = "generated"
    score_motion: ScoreMotion = "clean"
    motion_loss: bool = False
    regression: float = 0.0
    generator_every: int = 5
    guidance: Guidance = Guidance()

    def __post_init__(self) -> None:
        """Check all values."""
        for name, value in (("chunks", self.chunks), ("generator_every", self.generator_every)):
            if not isinstance(value, int) or value < 1:
                raise UserError(f"{name} = {value}: must be a whole number from 1")
        for name, value, known in (
            ("history", self.history, get_args(History)),
            ("score_motion", self.score_motion, get_args(ScoreMotion)),
        ):
            if value not in known:
                raise UserError(f"{name} = {value!r}: unknown; use {' or '.join(known)}")
        if not self.regression >= 0:
            raise UserError(f"regression = {self.regression}: must be 0 (off) or more")
