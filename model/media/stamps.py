"""Time stamps of sound: gaps between them become silence."""

from dataclasses import dataclass
from fractions import Fraction

TOLERANCE = Fraction(6, 100)
"""Seconds by which stamps may run ahead of the sound; rounding and jitter are not gaps."""
STEP_BACK = Fraction(1)
"""Seconds by which stamps may fall behind before they count as restarted."""
MOST_SILENCE = Fraction(2 * 3600)
"""Maximum seconds of silence inserted into a file in total."""
MOST_DISCONTINUOUS = Fraction(10)
"""Maximum seconds of one gap in a format whose stamps may jump (broadcast), as in FFmpeg."""
_KEPT_GAPS = 20


@dataclass(frozen=True)
class Gap:
    """Silence where the stamps leave a gap; both in seconds."""

    start: float
    seconds: float


class Stamps:
    """Computes how much silence precedes each piece of sound.

    Nothing that was recorded is left out: sound whose stamp is in the past simply follows, and only
    sound that comes late enough waits for its time. A jump that no recording has (more than
    `MOST_SILENCE` of silence in total, a step back by more than `STEP_BACK`) is not followed:
    stamps count on from there.

    Attributes:
        gaps: The first of them.
        count: Total number of gaps.
        silence: Total seconds of silence.
        jumps: Number of jumps that were not followed.
        first_jump: Time of the first of them in seconds.
    """

    def __init__(self, origin: Fraction | None, *, discontinuous: bool) -> None:
        """Start at an origin.

        Args:
            origin: Stamp in seconds at which a player starts; None for that of the first sound.
            discontinuous: Whether stamps may jump in this format.
        """
        self._shift = None if origin is None else -origin
        self._longest = MOST_DISCONTINUOUS if discontinuous else MOST_SILENCE
        self.gaps: list[Gap] = []
        self.count = self.jumps = 0
        self.silence = Fraction(0)
        self.first_jump = 0.0

    def silence_before(self, stamp: Fraction | None, position: Fraction) -> Fraction:
        """Return the seconds of silence between `position` and sound with this stamp.

        Args:
            stamp: Its time stamp in seconds; None if it has none.
            position: Seconds of sound and silence so far.
        """
        if stamp is None:
            return Fraction(0)
        if self._shift is None or (not position and abs(stamp + self._shift) <= TOLERANCE):
            self._shift = -stamp  # starts with the player: samples that a codec skips are no offset
        ahead = stamp + self._shift - position
        if -STEP_BACK <= ahead <= TOLERANCE:
            return Fraction(0)
        if ahead < 0 or ahead > self._longest or self.silence + ahead > MOST_SILENCE:
            self._shift -= ahead
            if not self.jumps:
                self.first_jump = float(position)
            self.jumps += 1
            return Fraction(0)
        if len(self.gaps) < _KEPT_GAPS:
            self.gaps.append(Gap(float(position), float(ahead)))
        self.count += 1
        self.silence += ahead
        return ahead
