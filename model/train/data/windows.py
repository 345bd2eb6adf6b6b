"""What a trainer reads of clips: windows of frames with their sound, and a picture from elsewhere.

Which window a sample is follows from the run's random numbers, the step and the sample's index, so
that a resumed run, or one on more ranks, sees the same ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from livetalk_kernels.errors import UserError

from ...avatar import before_grey
from ...config import CHUNK_FRAMES, FRAMES_PER_LATENT, MOTION_FRAMES, NEW_FRAMES
from ...stream.chunk import from_uint8
from ..draws import Draws
from ..faces.mouth import HOP
from .clips import Clips


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """A batch.

    Attributes:
        frames: uint8 [B, F, H, W, 3].
        reference: uint8 [B, H, W, 3], a frame of the same clip outside the window.
        audio: float32 [B, (lead + F) * 640]: the window's sound and what came before it; zeros
            before the clip.
        truth: float32 [B, F, K].
        clips: Which clip each is of.
        starts: First frame in it.
    """

    frames: Tensor
    reference: Tensor
    audio: Tensor
    truth: Tensor
    clips: tuple[int, ...]
    starts: tuple[int, ...]

    def pictures(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The frames as the VAE takes them, [B, 3, F, H, W] in -1..1."""
        return from_uint8(self.frames.permute(0, 4, 1, 2, 3), dtype)

    def motion(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The frames that a chunk starts from, [B, 3, 5, H, W] in -1..1."""
        return self.pictures(dtype)[:, :, :MOTION_FRAMES]

    def condition(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The reference, and grey behind it: what a portrait's latents are made of.

        A VAE that never saw grey frames encodes it badly, so these belong to its data.

        Returns:
            [B, 3, 33, H, W] in -1..1.
        """
        picture = from_uint8(self.reference.permute(0, 3, 1, 2), dtype)[:, :, None]
        return before_grey(picture)


class WindowReader:
    """Draws windows of clips."""

    def __init__(
        self, clips: Clips, draws: Draws, *, frames: int = CHUNK_FRAMES, lead: int = 0
    ) -> None:
        """Choose the clips that are long enough.

        Args:
            clips: Where to read.
            draws: The run's random numbers.
            frames: Of a window, 1 + 4 k; see `frames_of_chunks`.
            lead: Frames before it of which the sound is given too.

        Raises:
            UserError: No clip has a window and a picture outside it.
        """
        assert frames % FRAMES_PER_LATENT == 1 and lead >= 0, (frames, lead)
        self.clips, self._draws, self._frames, self._lead = clips, draws, frames, lead
        lengths = [entry.frames for entry in clips.index.clips]
        self._usable = [n for n, length in enumerate(lengths) if length > frames]
        if not self._usable:
            raise UserError(
                f"{clips.folder}: its clips have {max(lengths)} frames at most, {frames + 1} are "
                "needed; make longer ones with --seconds"
            )
        starts = [lengths[n] - frames + 1 for n in self._usable]
        self._ends = torch.tensor(starts).cumsum(0)

    def read(self, *, step: int, samples: Sequence[int], purpose: str = "window") -> Windows:
        """Read a batch.

        Args:
            step: Number of the update.
            samples: Indices in the global batch.
            purpose: What for; another word gives other windows.
        """
        where, elsewhere = (
            self._draws.uniform(f"{purpose} {what}", step=step, samples=samples).double()
            for what in ("place", "reference")
        )
        places = (where * self._ends[-1]).long().clamp(max=int(self._ends[-1]) - 1)
        chosen = torch.searchsorted(self._ends, places, right=True).tolist()
        clips = tuple(self._usable[n] for n in chosen)
        before = [int(self._ends[n - 1]) if n else 0 for n in chosen]
        starts = tuple(place - first for place, first in zip(places.tolist(), before, strict=True))
        rows = [
            self._row(clip, start, share)
            for clip, start, share in zip(clips, starts, elsewhere.tolist(), strict=True)
        ]
        frames, reference, audio, truth = (torch.stack(part) for part in zip(*rows, strict=True))
        return Windows(
            frames=frames, reference=reference, audio=audio, truth=truth, clips=clips, starts=starts
        )

    def _row(self, clip: int, start: int, share: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A window's frames, reference, audio and truth; the share says which frame is it."""
        end = start + self._frames
        frames, sound = self.clips.frames(clip), self.clips.sound(clip)
        others = len(frames) - self._frames
        other = min(int(share * others), others - 1)
        reference = frames[other if other < start else other + self._frames]
        heard = sound[max(0, start - self._lead) * HOP : end * HOP]
        audio = torch.zeros((self._lead + self._frames) * HOP)
        audio[len(audio) - len(heard) :] = heard
        return frames[start:end], reference, audio, self.clips.truth(clip)[start:end]


def frames_of_chunks(chunks: int) -> int:
    """Frames that so many chunks in a row cover; each repeats the last five of the one before."""
    return CHUNK_FRAMES + (chunks - 1) * NEW_FRAMES
