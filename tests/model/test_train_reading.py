"""What is read off pictures of faces that no training sees is what was drawn."""

import numpy as np
import pytest

from livetalk_model.media.synthetic import babble
from livetalk_model.train.data.synthetic import TRUTH, make_truth
from livetalk_model.train.faces.cast import PERSONS
from livetalk_model.train.faces.identity import Identity
from livetalk_model.train.faces.mouth import HOP
from livetalk_model.train.faces.painter import Painter, Pose
from livetalk_model.train.readers.reading import READ, FaceReader

SIZE = (96, 96)
EACH = 8  # frame of which one is drawn: a face looks around enough to correlate with
MEDIAN, WORST = 0.99, 0.98  # correlation that every column has, by face


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    seen = np.isfinite(one)
    return float(np.corrcoef(one[seen], other[seen])[0, 1])


@pytest.fixture(scope="module")
def read_and_true() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Readings and truth of held-out faces, [people, T, 8], and the readings of spoilt pictures."""
    readings, spoilt, truths = [], [], []
    for number in PERSONS["test"][1::4]:
        rng = np.random.default_rng(number)
        truth = make_truth(rng, 0.2 * babble(rng, EACH * 50 * HOP))[::EACH]
        person = Identity.of(number)
        painter, reader = Painter(person, SIZE), FaceReader(person, SIZE)
        frames = np.stack(
            [painter.draw(Pose(**dict(zip(TRUTH, row, strict=True)))) for row in truth]
        )
        readings.append(reader.read(frames))
        spoilt.append(reader.read(blurred(frames, rng)))
        truths.append(truth[:, [TRUTH.index(name) for name in READ]])
    return np.array(readings), np.array(truths), np.array(spoilt)


def blurred(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pictures as a small model makes them: soft, noisy, a little too dark."""
    soft = frames.astype(float)
    for axis in (1, 2):
        soft = (np.roll(soft, 1, axis) + 2 * soft + np.roll(soft, -1, axis)) / 4
    return np.clip(0.97 * soft + rng.normal(0, 4, soft.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", READ)
def test_readings_follow_the_truth(name, read_and_true):
    """Of all faces together, and of each: also of those whose hair, skin and eyes are alike."""
    readings, truths, spoilt = (values[..., READ.index(name)] for values in read_and_true)
    assert correlation(readings.ravel(), truths.ravel()) >= 0.99
    # A face that rests its gaze, or does not blink, has nothing to correlate with.
    moving = truths.std(axis=1) > 0.3 * truths.std()
    assert moving.sum() >= 12
    faces = [correlation(*pair) for pair in zip(readings[moving], truths[moving], strict=True)]
    assert np.median(faces) >= MEDIAN and min(faces) >= WORST
    assert correlation(spoilt.ravel(), truths.ravel()) >= (0.85 if name == "width" else 0.97)


def test_each_mouth_is_read_well(read_and_true):
    readings, truths, spoilt = read_and_true
    for person in range(len(readings)):
        assert correlation(readings[person, :, 0], truths[person, :, 0]) >= 0.98
        assert correlation(spoilt[person, :, 0], truths[person, :, 0]) >= 0.95
    assert np.abs(readings[..., 0] - truths[..., 0]).mean() < 0.04


def test_closed_eyes_look_nowhere(read_and_true):
    readings, truths, _ = read_and_true
    column = READ.index("blink")
    closed = truths[..., column] >= 0.9
    assert closed.any() and np.isnan(readings[closed][:, READ.index("gaze_x")]).all()


@pytest.mark.parametrize(
    "pose",
    [
        Pose(),
        Pose(sway_x=0.04, sway_y=-0.02, roll=-0.09, blink=1.0),
        Pose(sway_x=-0.03, gaze_x=0.9, gaze_y=-0.6),
    ],
)
@pytest.mark.parametrize("number", [415, 439, 416])  # dark skin, fair brows; and an average face
def test_a_head_is_found_whatever_its_eyes_do(number, pose):
    person = Identity.of(number)
    read = FaceReader(person, SIZE).read(Painter(person, SIZE).draw(pose)[None])[0]
    assert np.allclose(read[-3:], (pose.sway_x, pose.sway_y, pose.roll), atol=0.005)


def test_a_picture_of_nobody_has_no_traceback():
    reader = FaceReader(Identity.of(3), (64, 64))
    frames = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    frames[1] = 128
    values = reader.read(frames)
    assert values.shape == (2, len(READ)) and np.isfinite(values[:, :3]).all()
