"""Perturb and recover: does a stream recover from an error in its own past?

Twin streams continue from the same chunk with the same noise and sound; in one of them the last
five frames, which condition the next chunk, are disturbed. If their distance shrinks by a factor
per chunk, that is the contraction lambda, and below 1 the model corrects itself.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..avatar import Avatar
from ..config import MOTION_FRAMES
from ..pipeline import Pipeline
from ..stream.chunk import StreamOptions, from_uint8
from ..train.faces.cast import PERSONS
from ..train.faces.identity import Identity
from .pictures import difference
from .scripts import Script, portrait_of
from .series import contraction
from .streams import Made, make_stream

BEGIN = 10
"""Chunk that continues disturbed frames; in short streams the middle one."""
FLOOR = 1e-3
"""Fraction of the initial distance below which only rounding is measured."""
_TINT = (0.15, 0.0, -0.15)
_BLUR = 5
_NOISE = 0.15


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """A disturbed stream compared with its twin.

    Attributes:
        kind: What was disturbed; one of `KINDS`.
        latents: Root mean square distance of the motion latents: initially, then after each chunk.
        levels: Mean absolute difference of the frames of each chunk, in levels of 255.
    """

    kind: str
    latents: tuple[float, ...]
    levels: tuple[float, ...]

    @property
    def contraction(self) -> float | None:
        """Lambda per chunk."""
        return contraction(self.latents, FLOOR)


def _colour(video: Tensor, other: Tensor) -> Tensor:
    return video + torch.tensor(_TINT).view(1, 3, 1, 1, 1)


def _blur(video: Tensor, other: Tensor) -> Tensor:
    smooth = F.avg_pool2d(
        F.pad(video[0].transpose(0, 1), 4 * [_BLUR // 2], mode="replicate"), _BLUR, stride=1
    )
    return smooth.transpose(0, 1)[None]


def _noise(video: Tensor, other: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return video + _NOISE * torch.randn(video.shape, generator=generator)


def _face(video: Tensor, other: Tensor) -> Tensor:
    return other.expand_as(video)


Disturbance = Callable[[Tensor, Tensor], Tensor]
"""Five frames, and another person's portrait, [1, 3, T, H, W] in -1..1 -> disturbed frames."""

KINDS: Mapping[str, Disturbance] = MappingProxyType(
    {"colour": _colour, "blur": _blur, "noise": _noise, "another face": _face}
)


def recover(
    pipeline: Pipeline,
    avatar: Avatar,
    script: Script,
    options: StreamOptions,
    last: Made,
    *,
    first: int,
    advance: Callable[[], None],
) -> list[Recovery]:
    """Continue from a chunk, undisturbed and disturbed.

    Args:
        pipeline: The model.
        avatar: Avatar to animate.
        script: The stream; twins are made to its end.
        options: Options of the stream; the noise differs from before.
        last: The chunk before ``first``.
        first: Chunk that continues it.
        advance: Called after every chunk.
    """
    options = replace(options, seed=options.seed + 1)

    def continued(motion: Tensor) -> Iterator[Made]:
        return make_stream(pipeline, avatar, script.wave, options, first=first, motion=motion)

    def advancing(chunks: Iterator[Made]) -> list[Made]:
        made = []
        for chunk in chunks:
            made.append(chunk)
            advance()
        return made

    undisturbed = advancing(continued(last.motion))
    found = []
    for kind, disturb in KINDS.items():
        motion = _disturbed(pipeline, last.frames, script.person, disturb)
        pairs = list(zip(advancing(continued(motion)), undisturbed, strict=True))
        found.append(
            Recovery(
                kind=kind,
                latents=(
                    _distance(motion, last.motion),
                    *(_distance(one.motion, other.motion) for one, other in pairs),
                ),
                levels=tuple(
                    float(difference(one.frames, other.frames).mean()) for one, other in pairs
                ),
            )
        )
    return found


@torch.inference_mode()
def _disturbed(
    pipeline: Pipeline, frames_THWC: NDArray[np.uint8], person: Identity, disturb: Disturbance
) -> Tensor:
    """Encode disturbed frames to motion latents."""
    tail = torch.tensor(frames_THWC[-MOTION_FRAMES:])
    others = [number for number in PERSONS["test"] if number != person.number]
    size = (frames_THWC.shape[1], frames_THWC.shape[2])
    other = np.asarray(portrait_of(Identity.of(others[person.number % len(others)]), size))
    video, portrait = (
        from_uint8(pixels.permute(3, 0, 1, 2)[None], torch.float32)
        for pixels in (tail, torch.tensor(other)[None])
    )
    changed = disturb(video, portrait).clamp(-1, 1).to(pipeline.device, pipeline.dtype)
    return pipeline.vae.encode(changed)[0]


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).square().mean().sqrt())
