"""Makes a stream like the product does, chunk after chunk, and can diverge from it.

One stream at a time: on a CPU a batch of four takes as long per sample as one alone (measured at
the demo's size), so there is no second way of making streams.
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
        motion: [16, 2, h, w] latents of its last five frames, which the next one continues.
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
        avatar: Avatar to animate.
        wave_N: Sound of whole chunks at 16 kHz, from the start of the stream.
        options: Options of the stream; 25 frames per second.
        first: Chunk to start with.
        motion: Motion latents of that chunk; by default the portrait's.

    Yields:
        Each chunk; if ``first`` is 0 the frames equal those of a `Session` with the same sound.

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
        generator.continue_from(motion)
    audio, samples = AudioStream(pipeline.audio_encoder), NEW_FRAMES * HOP
    if first:  # feed what was heard until then
        audio.push(wave_N[: first * samples])
    for start in range(first * samples, len(wave_N) - samples + 1, samples):
        with torch.inference_mode():
            windows = audio.push(wave_N[start : start + samples])[None]
        frames = np.concatenate(list(generator.chunk(windows)))
        yield Made(frames=frames, motion=generator.motion)
