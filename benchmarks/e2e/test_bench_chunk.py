"""Speed of a whole chunk, from its sound to its last frame on the host, and of the first frame."""

from collections.abc import Callable
from typing import Any

import numpy as np

from livetalk_model.config import NEW_FRAMES
from livetalk_model.media.synthetic import speech
from livetalk_model.stream.session import Session

CHECKED = 2  # chunks


def stream(setup: Any, chunks: int) -> np.ndarray:
    """Make the frames of a new session."""
    with setup.pipeline.session(setup.avatar) as session:
        frames = [x for index in range(chunks) for x in session.push(speech(index))]
    return np.concatenate(frames)


def check(setup: Any) -> None:
    """Check that two runs of a seed give the same frames, of the right shape; NaN and Inf raise.

    The picture must not be a single colour either, the clamped output of a broken decoder.
    """
    first, second = (stream(setup, CHECKED) for _ in range(2))
    assert first.dtype == np.uint8
    assert first.shape == (CHECKED * NEW_FRAMES, *setup.avatar.size, 3)
    assert np.array_equal(first, second), "two runs of one seed differ"
    assert first.std() > 1, "the frames are empty"


def test_chunk(setup: Any, measure: Callable[..., None]) -> None:
    """Time one chunk in the middle of a stream."""
    check(setup)
    with setup.pipeline.session(setup.avatar) as session:
        sounds = iter(range(1_000_000))

        def chunk() -> None:
            for _ in session.push(speech(next(sounds))):
                pass

        measure(chunk, group="chunk")


def test_first_frame(setup: Any, measure: Callable[..., None]) -> None:
    """Time a stream from its request, with model and avatar loaded, to its first frame."""
    check(setup)
    sound, opened = speech(0), list[Session]()

    def close() -> None:
        while opened:
            opened.pop().close()

    def first_frame() -> None:
        session = setup.pipeline.session(setup.avatar)
        opened.append(session)
        next(session.push(sound))

    measure(first_frame, group="start-up", prepare=close)
    close()
