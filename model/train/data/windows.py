"""What a trainer reads from clips: windows of frames with their sound, and a reference picture.

The run's random numbers, the step and the sample's index determine its window, so a resumed run, or
one on more ranks, sees the same ones.
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
        audio: float32 [B, (lead + F) * 640]: the window's sound and what precedes it; zeros before
            the clip.
        truth: float32 [B, F, K].
        clips: Index of each one's clip.
        starts: Its first frame in the clip.
    """

    frames: Tensor
    reference: Tensor
    audio: Tensor
    truth: Tensor
    clips: tuple[int, ...]
    starts: tuple[int, ...]

    def pictures(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the frames as the VAE's input, [B, 3, F, H, W] in -1..1."""
        return from_uint8(self.frames.permute(0, 4, 1, 2, 3), dtype)

    def motion(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the frames that a chunk starts from, [B, 3, 5, H, W] in -1..1."""
        return self.pictures(dtype)[:, :, :MOTION_FRAMES]

    def condition(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the reference followed by grey, the source of a portrait's latents.

        A VAE that never saw grey frames encodes it badly, so these belong in its data.

        Returns:
            [B, 3, 33, H, W] in -1..1.
        """
        picture = from_uint8(self.reference.permute(0, 3, 1, 2), dtype)[:, :, None]
        return before_grey(picture)


class WindowReader:
    """Draws windows from clips."""

    def __init__(
        self, clips: Clips, draws: Draws, *, frames: int = CHUNK_FRAMES, lead: int = 0
    ) -> None:
        """Select the clips that are long enough.

        Args:
            clips: Source of the clips.
            draws: The run's random numbers.
            frames: Frames per window, 1 + 4 k; see `frames_of_chunks`.
            lead: Preceding frames whose sound is also returned.

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
            step: Index of the update.
            samples: Indices in the global batch.
            purpose: Purpose; another word gives other windows.
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
        """Return a window's frames, reference, audio and truth; ``share`` selects the reference."""
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
    """Count the frames of consecutive chunks, each repeating the last five of the previous."""
    return CHUNK_FRAMES + (chunks - 1) * NEW_FRAMES
