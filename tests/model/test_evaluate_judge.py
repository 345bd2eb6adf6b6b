"""The judge of pictures: drawn truth is good, and each way of being bad is noticed."""

from dataclasses import replace

import numpy as np
import pytest

from livetalk_model.config import NEW_FRAMES
from livetalk_model.evaluate.difference import ciede2000, lab_of
from livetalk_model.evaluate.evaluation import WHOLE, whole_measures
from livetalk_model.evaluate.judge import MEASURES, USUAL_SMILE, Judge, chunk_measures
from livetalk_model.evaluate.scripts import Script
from livetalk_model.media.synthetic import babble
from livetalk_model.train.data.synthetic import TRUTH, make_truth
from livetalk_model.train.faces.identity import Identity
from livetalk_model.train.faces.mouth import HOP, follow, loudness
from livetalk_model.train.faces.painter import Painter, Pose

SIZE = (96, 96)
CHUNKS = 18  # twenty seconds, of which sound can be shifted by ten
PERSON, OTHER = 416, 433


@pytest.fixture(scope="module")
def script() -> Script:
    """A stream's sound and truth."""
    rng = np.random.default_rng(5)
    wave = 0.2 * babble(rng, CHUNKS * NEW_FRAMES * HOP)
    opening, width = follow(wave)
    return Script(
        person=Identity.of(PERSON),
        voice="babble",
        wave=wave,
        opening=opening,
        width=width,
        loudness=loudness(wave),
        truth=make_truth(rng, wave).astype(np.float32),
        distinct=len(opening),
    )


def drawn(number: int, truth: np.ndarray) -> np.ndarray:
    """What a person looks like, [T, H, W, 3]."""
    painter = Painter(Identity.of(number), SIZE)
    return np.stack([painter.draw(Pose(**dict(zip(TRUTH, row, strict=True)))) for row in truth])


def judged(script: Script, frames: np.ndarray) -> dict[str, np.ndarray]:
    """What the judge says of the first frames of a stream."""
    judge, parts = Judge(script.person, SIZE), []
    for first in range(0, len(frames), NEW_FRAMES):
        here = slice(first, first + NEW_FRAMES)
        parts.append(judge.judge(frames[here], script.opening[here], script.width[here]))
    mean = np.round(frames.mean(axis=0)).astype(np.uint8)
    away = float(ciede2000(lab_of(mean), lab_of(judge.portrait)).mean())
    assert judge.mean_frame_away() == pytest.approx(away)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope="module")
def truth_judged(script):
    """The true pictures, and what is said of them."""
    frames = drawn(PERSON, script.truth)
    return frames, judged(script, frames)


def chunks_of(found: dict[str, np.ndarray], script: Script) -> dict[str, np.ndarray]:
    frames = len(found["opening"])
    return chunk_measures(found, script.opening[:frames], script.width[:frames])


def test_the_truth_talks_and_looks_like_itself(script, truth_judged):
    _, found = truth_judged
    whole, chunks = whole_measures(found, script), chunks_of(found, script)
    assert whole.keys() | {"mean_frame_away"} == WHOLE.keys() and chunks.keys() == MEASURES.keys()
    assert whole["mouth"] >= 0.98 and whole["mouth_without_loudness"] >= 0.98
    assert whole["mouth_shifted_worst"] < 0.3 and abs(whole["mouth_shifted"]) < 0.1
    assert whole["mouth_lag"] == 0 and whole["width"] > 0.9
    assert whole["mouth_peaks"] == pytest.approx(1, abs=0.05)
    assert whole["blink_ratio"] == 1 and whole["true_blinks"] > 5
    for name in ("gaze_x", "gaze_y", "sway_x", "sway_y", "roll"):
        assert whole[f"{name}_spread"] == pytest.approx(1, abs=0.25)
    assert whole["worst_away"] < 8 and abs(whole["picture_db_change"]) < 4
    assert chunks["picture_db"].min() > 28 and chunks["mouth_db"].min() > 20
    for name in ("sharpness", "saturation", "contrast", "recognised", "eyes_kept"):
        assert chunks[name] == pytest.approx(1, abs=0.06), name
    assert np.abs(chunks["lightness"]).max() < 0.1 and chunks["background"].max() < 0.5
    assert chunks["lips"].min() > 0.9 and np.median(chunks["lips_lag"]) == 0
    assert chunks["from_first"][0] == 0 and 0 < chunks["from_first"][1:].min() < 6
    assert chunks["identity"].max() < 1 and np.nanmean(chunks["seam"]) == pytest.approx(1, abs=0.3)


def test_the_true_picture_has_the_true_mouth_and_the_rest_as_it_is_seen(script):
    """A still mouth costs the mouth's decibels; another sway, gaze or blink costs none."""
    truth = script.truth[: 2 * NEW_FRAMES].copy()
    truth[:, TRUTH.index("smile")] = USUAL_SMILE
    truth[:, TRUTH.index("width")] = script.width[: len(truth)]
    moved = truth.copy()
    for name, value in (("sway_x", 0.03), ("roll", 0.05), ("gaze_x", 0.6), ("blink", 0.0)):
        moved[:, TRUTH.index(name)] = value
    shut = truth.copy()
    shut[:, TRUTH.index("opening")] = 0
    usual, other, still = (
        chunks_of(judged(script, drawn(PERSON, rows)), script) for rows in (truth, moved, shut)
    )
    assert other["picture_db"].mean() > usual["picture_db"].mean() - 3
    assert still["mouth_db"].mean() < usual["mouth_db"].mean() - 8
    assert still["mouth_error"].mean() > 0.1 > 3 * usual["mouth_error"].mean()


def test_another_face_is_noticed(script):
    frames = drawn(OTHER, script.truth[:NEW_FRAMES])
    chunks = chunks_of(judged(script, frames), script)
    assert chunks["recognised"] < 0.05 and chunks["identity"] > 5 and chunks["away"] > 8


def test_eyes_of_another_colour_are_noticed(script):
    own = Identity.of(PERSON)
    painter = Painter(replace(own, eyes="blue" if own.eyes != "blue" else "brown"), SIZE)
    frames = np.stack([painter.draw(Pose(gaze_x=x)) for x in np.linspace(-1, 1, NEW_FRAMES)])
    assert chunks_of(judged(script, frames), script)["eyes_kept"] == 0


def test_spoilt_pictures_are_noticed(script, truth_judged):
    frames, found = truth_judged
    frames = frames[: 2 * NEW_FRAMES]
    usual = {name: values[:2] for name, values in chunks_of(found, script).items()}
    rng = np.random.default_rng(6)

    def spoilt(pictures: np.ndarray) -> dict[str, np.ndarray]:
        return chunks_of(judged(script, np.clip(pictures, 0, 255).astype(np.uint8)), script)

    soft = frames.astype(float)
    for axis in (1, 2, 1, 2):
        soft = (np.roll(soft, 1, axis) + soft + np.roll(soft, -1, axis)) / 3
    assert (spoilt(soft)["sharpness"] < 0.6).all()
    noisy = spoilt(frames + rng.normal(0, 6, frames.shape))
    assert noisy["sharpness"] == pytest.approx(usual["sharpness"], rel=0.12)
    assert (noisy["picture_db"] < usual["picture_db"] - 3).all()
    grey = frames.mean(axis=-1, keepdims=True)
    pale = spoilt(0.5 * frames + 0.5 * grey)
    assert (pale["saturation"] < 0.7).all() and (pale["identity"] > 2).all()
    dark = spoilt(0.8 * frames)
    assert (dark["lightness"] < -8).all() and (dark["away"] > usual["away"] + 4).all()
    assert (dark["contrast"] < 0.95).all() and (dark["background"] > 20).all()
    jumps = frames.astype(float)
    jumps[NEW_FRAMES : 2 * NEW_FRAMES] += 6
    assert (spoilt(jumps)["seam"][1:] > 2).all()
