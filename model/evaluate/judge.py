"""Judges a stream's pictures, frame by frame: mouth, eyes, position, likeness, sharpness, colours.

The sound determines the true mouth. Head position, gaze and blinks are random: the true picture, to
which a generated one is compared, is drawn with the true mouth and with the rest as it was read.
The smile, which is random too and is not read, is its average there.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import NEW_FRAMES
from ..train.faces.identity import Identity
from ..train.faces.painter import Painter, Pose
from ..train.readers.reading import READ, FaceReader
from .attributes import PARTS, AttributeReader
from .difference import ciede2000, lab_of
from .pictures import Regions, decibels, difference, edges, seam_ratio
from .series import best_lags, windowed_correlations

Floats: TypeAlias = NDArray[np.float64]

USUAL_SMILE = 0.15
MOST_LAG = 5  # frames either way, within a chunk
_CHANCE = ("blink", "gaze_x", "gaze_y", "sway_x", "sway_y", "roll")


class Judge:
    """Judges streams of one person, given the chunks of each in order."""

    def __init__(self, person: Identity, size: tuple[int, int]) -> None:
        """Analyse the person.

        Args:
            person: Who should be seen.
            size: Pictures' (H, W).
        """
        self.regions = Regions.of(person, size)
        self._painter, self._reader = Painter(person, size), FaceReader(person, size)
        self._attributes = AttributeReader(person, size)
        self.portrait = self._painter.draw(Pose())
        self._portrait_lab = lab_of(self.portrait)
        self.begin()

    def begin(self) -> None:
        """Start another stream, forgetting the one before."""
        self._last = self.portrait
        self._first_lab: torch.Tensor | None = None
        self._sum = np.zeros(self.portrait.shape)
        self._count = 0

    def judge(
        self, frames_THWC: NDArray[np.uint8], opening_T: Floats, width_T: Floats
    ) -> dict[str, Floats]:
        """Judge a chunk.

        Args:
            frames_THWC: uint8 [T, H, W, 3].
            opening_T: True opening of the mouth.
            width_T: True width of the mouth.

        Returns:
            Name -> one value per frame: `READ`; ``picture_db`` and ``mouth_db`` against the true
            picture; ``edges``, ``chroma``, ``light``, ``contrast`` and those of the true one;
            ``away`` from the portrait by mean CIEDE2000 of all pixels; ``from_first``, likewise
            between this chunk's mean frame and the first one's; ``background``, ``motion``;
            ``away_PART``; ``recognised``, ``eyes_kept``.
        """
        read_TK, places = self._reader.read_places(frames_THWC)
        read = {name: read_TK[:, column] for column, name in enumerate(READ)}
        true = self._true_pictures(read, opening_T, width_T)
        lab, true_lab = lab_of(frames_THWC), lab_of(true)
        gaze_T2 = np.stack([read["gaze_x"], read["gaze_y"]], axis=1)
        seen = self._attributes.read(frames_THWC, places, gaze_T2)
        before = np.concatenate([self._last[None], frames_THWC[:-1]])
        self._last = frames_THWC[-1]
        total = frames_THWC.sum(axis=0, dtype=np.float64)
        self._sum += total
        self._count += len(frames_THWC)
        face, mouth, still = self.regions.face, self.regions.mouth, self.regions.still
        away_THW = ciede2000(lab, self._portrait_lab)
        mean_lab = _mean_lab(total, len(frames_THWC))
        if self._first_lab is None:
            self._first_lab = mean_lab
        from_first = float(ciede2000(mean_lab, self._first_lab).mean())
        return {
            **read,
            "picture_db": decibels(frames_THWC, true),
            "mouth_db": decibels(frames_THWC, true, mouth),
            "edges": edges(frames_THWC, face),
            "true_edges": edges(true, face),
            "chroma": _mean(torch.hypot(lab[..., 1], lab[..., 2])),
            "true_chroma": _mean(torch.hypot(true_lab[..., 1], true_lab[..., 2])),
            "light": _mean(lab[..., 0]),
            "true_light": _mean(true_lab[..., 0]),
            "contrast": _spread(lab[..., 0]),
            "true_contrast": _spread(true_lab[..., 0]),
            "away": _mean(away_THW),
            "from_first": np.full(len(frames_THWC), from_first),
            "background": difference(frames_THWC, self.portrait[None], still),
            "motion": difference(frames_THWC, before),
            **{f"away_{part}": seen.away[:, column] for column, part in enumerate(PARTS)},
            "recognised": seen.recognised.astype(np.float64),
            "eyes_kept": seen.eyes_kept,
        }

    def mean_frame_away(self) -> float:
        """Compute mean CIEDE2000 over all pixels between the portrait and the mean frame."""
        return float(ciede2000(_mean_lab(self._sum, self._count), self._portrait_lab).mean())

    def _true_pictures(
        self, read: Mapping[str, Floats], opening_T: Floats, width_T: Floats
    ) -> NDArray[np.uint8]:
        chance = {name: np.clip(np.nan_to_num(read[name]), *_within(name)) for name in _CHANCE}
        poses = (
            Pose(
                opening=float(opening_T[t]),
                width=float(width_T[t]),
                smile=USUAL_SMILE,
                **{name: float(values[t]) for name, values in chance.items()},
            )
            for t in range(len(opening_T))
        )
        return np.stack([self._painter.draw(pose) for pose in poses])


def chunk_measures(
    frames: Mapping[str, Floats], opening_T: Floats, width_T: Floats
) -> dict[str, Floats]:
    """Aggregate the values of frames by chunk.

    Args:
        frames: From `Judge.judge`, for whole chunks.
        opening_T: True opening of the mouth.
        width_T: True width of the mouth.

    Returns:
        Name -> [K]; names as in `MEASURES`.
    """

    def mean(values_T: Floats) -> Floats:
        values_KF = values_T.reshape(-1, NEW_FRAMES)
        known = np.isfinite(values_KF)
        total = np.where(known, values_KF, 0).sum(axis=1)
        count = known.sum(axis=1)
        return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)

    kept = [f"away_{part}" for part in PARTS if part != "eyes"]
    lips_KL = windowed_correlations(frames["opening"], opening_T, NEW_FRAMES, MOST_LAG)
    return {
        "mouth_error": mean(np.abs(frames["opening"] - opening_T)),
        "width_error": mean(np.abs(frames["width"] - width_T)),
        "lips": lips_KL[:, MOST_LAG],
        "lips_lag": best_lags(lips_KL),
        "picture_db": mean(frames["picture_db"]),
        "mouth_db": mean(frames["mouth_db"]),
        "sharpness": mean(frames["edges"]) / mean(frames["true_edges"]),
        "saturation": mean(frames["chroma"]) / mean(frames["true_chroma"]),
        "lightness": mean(frames["light"]) - mean(frames["true_light"]),
        "contrast": mean(frames["contrast"]) / mean(frames["true_contrast"]),
        "away": mean(frames["away"]),
        "from_first": mean(frames["from_first"]),
        "worst_away": frames["away"].reshape(-1, NEW_FRAMES).max(axis=1),
        "identity": mean(np.mean([frames[name] for name in kept], axis=0)),
        "recognised": mean(frames["recognised"]),
        "eyes_kept": mean(frames["eyes_kept"]),
        "background": mean(frames["background"]),
        "motion": mean(frames["motion"]),
        "seam": seam_ratio(frames["motion"], NEW_FRAMES),
    }


MEASURES: Mapping[str, str] = {
    "mouth_error": "mean difference between mouth opening and truth, 0..1",
    "width_error": "the same for its width",
    "lips": "correlation of mouth opening with the truth within the chunk",
    "lips_lag": "frames by which the mouth lags there, at most five either way",
    "picture_db": "PSNR against the true picture, dB",
    "mouth_db": "the same around the mouth, dB",
    "sharpness": "gradient energy in the face relative to the truth",
    "saturation": "mean chroma relative to the truth",
    "lightness": "mean L* minus the truth's",
    "contrast": "standard deviation of L* relative to the truth",
    "away": "mean CIEDE2000 of pixels from the portrait",
    "from_first": "mean CIEDE2000 between the chunk's mean frame and the first chunk's",
    "worst_away": "away, for the chunk's worst frame",
    "identity": "CIEDE2000 of skin, hair, wall and clothes from the person's own",
    "recognised": "fraction of frames nearer to the person than to any other in the test split",
    "eyes_kept": "fraction of open eyes nearer to their own colour than to any other",
    "background": "difference of still pixels from the portrait's, levels of 255",
    "motion": "difference between consecutive frames, levels of 255",
    "seam": "jump into a chunk relative to those within it and the one before",
}
"""Measures of a chunk, and their meaning."""


def _within(name: str) -> tuple[float, float]:
    """Return the range in which a pose can be drawn."""
    far = {"sway_x": 0.1, "sway_y": 0.1, "roll": 0.2}.get(name, 1.0)
    return (0.0 if name == "blink" else -far), far


def _mean_lab(total_HWC: Floats, count: int) -> torch.Tensor:
    """Convert a mean picture, as a video would show it, to CIELAB."""
    return lab_of(np.round(total_HWC / count).astype(np.uint8))


def _mean(values_THW: torch.Tensor) -> Floats:
    return np.asarray(values_THW.double().mean(dim=(1, 2)).numpy())


def _spread(values_THW: torch.Tensor) -> Floats:
    return np.asarray(values_THW.double().std(dim=(1, 2), correction=0).numpy())
