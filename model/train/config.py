"""Choices of both stages, with the paper's values as defaults; what is disputed is a switch."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from livetalk_kernels.errors import UserError

History = Literal["generated", "oracle"]
ScoreMotion = Literal["clean", "noised"]


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """How stage 1 teaches.

    Attributes:
        long_motion: Fraction of samples with five motion frames; the others have only the first
            frame, like the start of a stream.
        drop_both: Fraction without audio and text, for guidance.
        drop_text: Fraction without text only.
        anchored: Fraction whose time is one of the sampler's; other times are continuous.
        mouth: Whether drawn mouths and eyes count more than the rest of a picture, up to
            `vae.picture_losses.FEATURES` times; the optimum at each position stays the same.
        noised_motion: Fraction with noise on the motion, since a stream's own output has errors.

    Raises:
        UserError: A fraction is out of range.
    """

    long_motion: float = 0.9
    drop_both: float = 0.05
    drop_text: float = 0.05
    anchored: float = 0.0
    noised_motion: float = 0.0
    mouth: bool = False

    def __post_init__(self) -> None:
        """Validate all values."""
        _check_parts(**{name: (value, 1.0) for name, value in vars(self).items()})
        _check_parts(**{"drop_both + drop_text": (self.drop_both + self.drop_text, 1.0)})


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How far the real score is pushed away from dropped conditions.

    Attributes:
        audio: Scale of the step from nothing to the audio.
        text: Scale of the step from audio to audio and text; None for a model without text, which
            skips that step.
    """

    audio: float = 4.0
    text: float | None = 3.0


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How the student is taught.

    Attributes:
        chunks: K: the chunk that learns is drawn from 1 to K, and those before it are the
            student's own.
        history: What precedes the chunk for the real score: the ``generated`` chunk that the
            student saw, or the ``oracle``, the true one.
        score_motion: Whether motion latents enter both scores ``clean``, or ``noised`` like the
            rest.
        motion_loss: Whether the losses include the motion latents' positions.
        regression: Factor of |student - truth|^2, used with the oracle.
        generator_every: Updates of the fake score per update of the student.
        guidance: Guidance of the real score.

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
        """Validate all values."""
        _check_parts(regression=(self.regression, math.inf))
        for name, count in (("chunks", self.chunks), ("generator_every", self.generator_every)):
            if not isinstance(count, int) or count < 1:
                raise UserError(f"{name} = {count}: must be a whole number from 1")
        for name, value, known in (
            ("history", self.history, get_args(History)),
            ("score_motion", self.score_motion, get_args(ScoreMotion)),
        ):
            if value not in known:
                raise UserError(f"{name} = {value!r}: unknown; use {' or '.join(known)}")


def _check_parts(**values: tuple[float, float]) -> None:
    """Reject numbers below 0 or above their limit, and NaN.

    Raises:
        UserError: There are any.
    """
    for name, (value, most) in values.items():
        if not 0 <= value <= most:
            upper = "or more" if most == math.inf else f"to {most:g}"
            raise UserError(f"{name} = {value}: must be 0 {upper}")
