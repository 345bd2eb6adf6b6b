"""Real clips: videos of a talking person, cropped to the frame and cut to pieces, with sound."""

import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import check_folder, is_file, read_text

from ...config import CHUNK_FRAMES
from ...media.audio import AudioReader
from ...media.containers import open_container, reason
from ...media.image import Crop, check_picture, fit_portrait
from ..faces.mouth import FPS, HOP
from .clips import Clip

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg")
SHORTEST = 2 * CHUNK_FRAMES
"""Minimum frames of a clip: a window, and one for the reference."""
MOST_MOTION = 6.0
"""Mean change of the background's grey levels between frames, of 255, above which it is moving."""
_EDGE = 8  # the outermost eighths, left and right, of the upper half are background
_LONGEST_STILL = 10 * FPS  # frames that one picture may cover
_STEP = 5  # frames between two that are compared


@dataclass(frozen=True, kw_only=True)
class Video:
    """A video file in a folder.

    Attributes:
        path: The file.
        source: Its name and size, by which a later run recognises it.
    """

    path: Path
    source: str

    def file(self, piece: int) -> str:
        """Name the clip that a piece becomes."""
        digest = hashlib.blake2b(self.source.encode(errors="replace"), digest_size=6).hexdigest()
        return f"{digest}_{piece:04d}.safetensors"


def find_videos(folder: Path) -> list[Video]:
    """List the videos in a folder by name.

    Raises:
        UserError: There are none.
    """
    folder = check_folder(folder, "give a folder of videos")
    paths = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not paths:
        raise UserError(f"{folder}: holds no videos ({', '.join(SUFFIXES)}); give their folder")
    return [Video(path=path, source=f"{path.name} {path.stat().st_size}") for path in paths]


def read_clips(
    video: Video, *, size: tuple[int, int], frames: int, crop: Crop | None = None
) -> Iterator[Clip | str]:
    """Cut a video into clips. Text in a file next to it, ``talk.txt``, is their prompt.

    Args:
        video: The file.
        size: Pictures' (H, W).
        frames: Frames per clip; the last one may be shorter, down to `SHORTEST`.
        crop: Part of the picture to keep; None for its centre.

    Yields:
        Clips, or the reason why one is left out.

    Raises:
        UserError: The file has no sound, no video, or is damaged; or the prompt is not text.
    """
    facts: dict[str, str | int] = {"source": video.source}
    text = video.path.with_suffix(".txt")
    if is_file(text):
        facts["prompt"] = read_text(text, "prompt").strip()
    with AudioReader(video.path, block=frames * HOP) as sound:
        blocks = iter(sound)
        for number, seen in enumerate(_pieces(video.path, size, frames, crop)):
            heard = next(blocks, np.zeros(0, np.float32))
            at = f"{video.path} at {number * frames / FPS:.0f} s"
            length = min(len(seen), len(heard) // HOP)
            if length < SHORTEST:
                seconds = length / FPS
                yield f"{at}: {seconds:.1f} s with sound are left, {SHORTEST / FPS} are needed"
                continue
            moving = background_motion(seen[:length])
            if moving > MOST_MOTION:
                yield f"{at}: the background moves by {moving:.1f} grey levels, not {MOST_MOTION}"
                continue
            samples = np.clip(np.round(heard[: length * HOP] * 32768), -32768, 32767)
            yield Clip(
                frames=seen[:length],
                audio=samples.astype(np.int16),
                truth=np.zeros((length, 0), np.float32),
                facts={**facts, "first": number * frames},
            )


def background_motion(frames_THWC: NDArray[np.uint8]) -> float:
    """Compute the mean change left and right above the shoulders, in grey levels.

    Args:
        frames_THWC: uint8 [T, H, W, 3].
    """
    _, height, width, _ = frames_THWC.shape
    side = max(1, width // _EDGE)
    upper = frames_THWC[::_STEP, : height // 2].mean(axis=-1, dtype=np.float32)
    edges = np.concatenate([upper[:, :, :side], upper[:, :, width - side :]], axis=2)
    return float(np.abs(np.diff(edges, axis=0)).mean()) if len(edges) > 1 else 0.0


def _pieces(
    path: Path, size: tuple[int, int], frames: int, crop: Crop | None
) -> Iterator[NDArray[np.uint8]]:
    """Yield the pictures at 25 per second, ``frames`` at a time."""
    waiting: deque[NDArray[np.uint8]] = deque()
    for picture, times in _timed(path):
        pixels = _fitted(path, picture, size, crop)
        for _ in range(times):
            waiting.append(pixels)
            if len(waiting) == frames:
                yield np.stack(waiting)
                waiting.clear()
    if waiting:
        yield np.stack(waiting)


def _timed(path: Path) -> Iterator[tuple[av.VideoFrame, int]]:
    """Yield every picture with the number of frames at 25 per second that show it, if any."""
    with open_container(path) as container:
        if not container.streams.video:
            raise UserError(f"{path}: has no video; choose a video file")
        origin = Fraction(container.start_time or 0, av.time_base)
        shown: av.VideoFrame | None = None
        done = 0
        try:
            for picture in container.decode(container.streams.video[0]):
                stamp = picture.pts
                if stamp is None or picture.time_base is None:
                    continue
                # A frame shows the latest picture that started before its middle.
                begun = (stamp * picture.time_base - origin) * FPS
                until = max(done, ceil(begun - Fraction(1, 2)))
                if until - done > _LONGEST_STILL:
                    seconds = (until - done) / FPS
                    raise UserError(
                        f"{path}: has no picture for {seconds:.0f} s; cut it there, or export it "
                        "again"
                    )
                if shown is not None and until > done:
                    yield shown, until - done
                    done = until
                shown = picture
        except av.error.FFmpegError as error:
            raise UserError(
                f"{path}: the video is damaged ({reason(error)}); export it again"
            ) from None
        if shown is None:
            raise UserError(f"{path}: holds no pictures; export it again")
        yield shown, 1


def _fitted(
    path: Path, picture: av.VideoFrame, size: tuple[int, int], crop: Crop | None
) -> NDArray[np.uint8]:
    """Crop and scale a picture upright like a portrait, uint8 [H, W, 3]."""
    image = picture.to_image()
    if picture.rotation:
        image = image.rotate(picture.rotation, expand=True)
    check_picture(path, image.width, image.height)
    if isinstance(crop, tuple):
        x, y, width, height = crop
        if x + width > image.width or y + height > image.height:
            raise UserError(
                f"--crop {x},{y},{width},{height}: reaches beyond {path}, which is "
                f"{image.width} wide and {image.height} high"
            )
        image = image.crop((x, y, x + width, y + height))
    return fit_portrait(image, size, top=crop == "top").permute(1, 2, 0).contiguous().numpy()
