"""Made-up faces: who they are, what they do, and that a mouth follows its sound."""

from dataclasses import replace

import numpy as np
import pytest

from livetalk_model.media.synthetic import SAMPLE_RATE, babble
from livetalk_model.train.data.synthetic import TRUTH, make_clip, make_truth
from livetalk_model.train.faces import cast, liveliness
from livetalk_model.train.faces.identity import EYES, Identity
from livetalk_model.train.faces.mouth import FPS, HOP, follow
from livetalk_model.train.faces.painter import EYE_X, EYE_Y, Painter, Pose, picture_points

SIZE = (96, 96)


def vowel(first: float, second: float, seconds: float = 1.0, gain: float = 0.2) -> np.ndarray:
    """A voice with two resonances, of equal loudness for all of them."""
    t = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    wave = np.zeros_like(t)
    for hertz in np.arange(120, 3600, 120):
        level = 1 / (1 + ((hertz - first) / 90) ** 2) + 0.5 / (1 + ((hertz - second) / 130) ** 2)
        wave += level * np.sin(2 * np.pi * hertz * t)
    return (gain * wave / np.sqrt(np.mean(wave**2))).astype(np.float32)


@pytest.mark.parametrize("lists", [cast.PERSONS, cast.VOICES, cast.TEXTS])
def test_nobody_is_in_both_splits(lists):
    assert not set(lists["train"]) & set(lists["test"])
    for entries in lists.values():
        assert len(set(entries)) == len(entries) >= 8


def test_a_person_is_the_same_everywhere_and_unlike_the_others():
    people = [Identity.of(number) for number in range(40)]
    assert people[3] == Identity.of(3)
    assert len({(p.skin, p.hair, p.style, p.eyes, p.clothes, p.wall) for p in people}) == 40
    assert {p.eyes for p in people} == set(EYES)


@pytest.mark.parametrize("eyes", EYES)
def test_eyes_keep_their_colour(eyes):
    """Between pupil and rim there are pixels of the iris's own colour."""
    frame = Painter(replace(Identity.of(1), eyes=eyes), SIZE).draw(Pose()).astype(int)
    x, y = np.moveaxis(picture_points(SIZE), -1, 0)
    near = np.hypot(np.abs(x) - EYE_X, y - EYE_Y) < 0.04
    away = {name: np.abs(frame[near] - colour).sum(-1).min() for name, colour in EYES.items()}
    assert away[eyes] < 40
    assert min(away, key=away.__getitem__) == eyes


@pytest.mark.parametrize("name", TRUTH)
def test_all_that_is_true_is_seen(name):
    painter = Painter(Identity.of(5), SIZE)
    pose = Pose(opening=0.4)
    moved = replace(pose, **{name: getattr(pose, name) + 0.1})
    before, after = (painter.draw(p).astype(int) for p in (pose, moved))
    assert np.array_equal(before, painter.draw(pose))
    assert np.abs(before - after).sum() > 500


def test_other_sizes_are_the_same_picture():
    small, large, tall = (
        Painter(Identity.of(2), size).draw(Pose(opening=0.5))
        for size in (SIZE, (192, 192), (160, 96))
    )
    halved = large.reshape(96, 2, 96, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - small).mean() < 2
    assert np.abs(tall[32:128].astype(int) - small).mean() < 6  # but for the light on the wall


def test_mouths_differ_at_equal_loudness():
    openings, widths = zip(
        *(
            (opening[10], width[10])
            for opening, width in map(follow, (vowel(750, 1300), vowel(300, 2300), vowel(300, 900)))
        ),
        strict=True,
    )
    assert openings[0] > 2 * openings[1] and openings[0] > 1.2 * openings[2]
    assert widths[1] > widths[0] > widths[2] and widths[1] > widths[2] + 0.4


def test_silence_closes_the_mouth_and_louder_opens_it():
    wave = np.concatenate(
        [0.1 * vowel(750, 1300), np.zeros(FPS * HOP, np.float32), vowel(750, 1300)]
    )
    opening, width = follow(wave)
    assert len(opening) == len(width) == 3 * FPS
    assert np.all(opening[30:45] == 0) and np.allclose(width[30:45], 0.5)
    assert 0 < opening[12] < opening[62] <= 1
    assert np.all(follow(np.zeros(HOP * 4, np.float32))[0] == 0)
    assert np.all(follow(0 * wave + 1e-5)[0] == 0)


def test_the_mouth_is_not_loudness_alone():
    """What a quadratic function of the loudness leaves of the opening is worth learning."""
    wave = 0.2 * babble(np.random.default_rng(0), 400 * HOP)
    opening, width = follow(wave)
    power = np.square(wave.reshape(-1, HOP)).mean(axis=1)
    heard = power > 1e-5
    level = np.log10(power[heard])
    terms = np.stack([np.ones_like(level), level, level**2], 1)
    for values in (opening[heard], width[heard]):
        rest = values - terms @ np.linalg.lstsq(terms, values, rcond=None)[0]
        assert rest.std() > 0.1


def test_chance_moves_what_the_sound_does_not_determine():
    wave = 0.2 * babble(np.random.default_rng(1), 200 * HOP)
    one, other = (make_truth(np.random.default_rng(seed), wave) for seed in (1, 2))
    assert one.shape == (200, len(TRUTH))
    columns = dict(zip(TRUTH, np.moveaxis(np.stack([one, other]), -1, 0), strict=True))
    for name, (a, b) in columns.items():
        assert np.array_equal(a, b) == (name == "opening"), name
    assert np.abs(np.diff(one[:, TRUTH.index("sway_x")])).max() < 0.01  # heads do not jump


def test_eyes_blink_and_look_around():
    rng = np.random.default_rng(0)
    closed, looks = liveliness.blinks(rng, 3000), liveliness.gaze(rng, 3000)
    starts = np.flatnonzero((closed[1:] > 0) & (closed[:-1] == 0))
    assert 20 < len(starts) < 70  # in two minutes
    assert closed.max() == 1 and np.mean(closed > 0) < 0.2
    assert np.abs(looks).max() <= 1 and 0.3 < np.mean(looks == 0) < 0.7


def test_a_clip_follows_from_its_number():
    make = {"seed": 3, "split": "test", "seconds": 1.0, "size": (32, 48), "program": None}
    clip, again, other = (make_clip(index=index, **make) for index in (0, 0, 1))
    assert clip.frames.shape == (25, 32, 48, 3) and clip.frames.dtype == np.uint8
    assert clip.audio.shape == (25 * HOP,) and clip.audio.dtype == np.int16
    assert clip.truth.shape == (25, len(TRUTH))
    assert clip.facts["person"] in cast.PERSONS["test"] and clip.facts["voice"] == "babble"
    for name in ("frames", "audio", "truth"):
        assert np.array_equal(getattr(clip, name), getattr(again, name))
        assert not np.array_equal(getattr(clip, name), getattr(other, name))
