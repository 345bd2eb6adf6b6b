"""Makes a stream as the product does, chunk after chunk, and can go off its own way.

One stream at a time: on a CPU a batch of four takes as long a sample as one alone (measured in the
demo's size), so there is no second way of making streams.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..avatar import Avatar
from ..config import NEW_FRAMES
from ..encoders.audio import AudioStream
from ..pipeline import Pipeline
from ..stream.chunk import ChunkGenerator, StreamOptions
from ..train.faces.mouth import HOP


@dataclass(frozen=True, kw_only=True, eq=False)
class Made:
    """A chunk that was made.

    Attributes:
        frames: uint8 [28, H, W, 3].
        motion: [16, 2, h, w] latents of its last five frames, from which the next one goes on.
    """

    frames: NDArray[np.uint8]
    motion: Tensor


def make_stream(
    pipeline: Pipeline,
    avatar: Avatar,
    wave_N: NDArray[np.float32],
    options: StreamOptions,
    *,
    first: int = 0,
    motion: Tensor | None = None,
) -> Iterator[Made]:
    """Make chunks.

    Args:
        pipeline: The model.
        avatar: Who is seen.
        wave_N: Sound of whole chunks at 16 kHz, from the stream's begin.
        options: How; 25 frames a second.
        first: Chunk to begin with.
        motion: Motion latents of that chunk; by default the portrait's.

    Yields:
        Each chunk; with ``first`` 0 the frames are those of a `Session` that hears the same.

    Raises:
        NumericsError: See `ChunkGenerator.chunk`.
    """
    assert pipeline.audio_encoder is not None
    generator = ChunkGenerator(
        pipeline.dit,
        pipeline.vae,
        avatar,
        options,
        reuse=pipeline.reuse,
        calls=pipeline.calls,
    )
    if motion is not None:
        generator.go_on_from(motion)
    audio, samples = AudioStream(pipeline.audio_encoder), NEW_FRAMES * HOP
    if first:  # what it heard until then
        audio.push(wave_N[: first * samples])
    for start in range(first * samples, len(wave_N) - samples + 1, samples):
        with torch.inference_mode():
            windows = audio.push(wave_N[start : start + samples])[None]
        frames = np.concatenate(list(generator.chunk(windows)))
        yield Made(frames=frames, motion=generator.motion)
