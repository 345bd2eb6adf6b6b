"""Every measure on numbers and pictures whose answer is known."""

import math

import numpy as np
import pytest
import torch

from livetalk_model.evaluate.difference import ciede2000, lab_of
from livetalk_model.evaluate.intervals import estimate
from livetalk_model.evaluate.pictures import (
    MOST_DB,
    decibels,
    difference,
    edges,
    median3,
    seam_ratio,
)
from livetalk_model.evaluate.series import (
    SHIFT,
    best_lag,
    best_lags,
    change,
    contraction,
    correlation,
    count_closings,
    partial_correlation,
    shifted_correlations,
    slope,
    windowed_correlations,
)

# Sharma, Wu, Dalal (2005), table 1: two colours and their difference.
SHARMA = """
50 2.6772 -79.7751  50 0 -82.7485  2.0425
50 3.1571 -77.2803  50 0 -82.7485  2.8615
50 2.8361 -74.0200  50 0 -82.7485  3.4412
50 -1.3802 -84.2814  50 0 -82.7485  1.0000
50 -1.1848 -84.8006  50 0 -82.7485  1.0000
50 -0.9009 -85.5211  50 0 -82.7485  1.0000
50 0 0  50 -1 2  2.3669
50 -1 2  50 0 0  2.3669
50 2.4900 -0.0010  50 -2.4900 0.0009  7.1792
50 2.4900 -0.0010  50 -2.4900 0.0010  7.1792
50 2.4900 -0.0010  50 -2.4900 0.0011  7.2195
50 2.4900 -0.0010  50 -2.4900 0.0012  7.2195
50 -0.0010 2.4900  50 0.0009 -2.4900  4.8045
50 -0.0010 2.4900  50 0.0010 -2.4900  4.8045
50 -0.0010 2.4900  50 0.0011 -2.4900  4.7461
50 2.5 0  50 0 -2.5  4.3065
50 2.5 0  73 25 -18  27.1492
50 2.5 0  61 -5 29  22.8977
50 2.5 0  56 -27 -3  31.9030
50 2.5 0  58 24 15  19.4535
50 2.5 0  50 3.1736 0.5854  1.0000
50 2.5 0  50 3.2972 0  1.0000
50 2.5 0  50 1.8634 0.5757  1.0000
50 2.5 0  50 3.2592 0.3350  1.0000
60.2574 -34.0099 36.2677  60.4626 -34.1751 39.4387  1.2644
63.0109 -31.0961 -5.8663  62.8187 -29.7946 -4.0864  1.2630
61.2901 3.7196 -5.3901  61.4292 2.2480 -4.9620  1.8731
35.0831 -44.1164 3.7933  35.0232 -40.0716 1.5901  1.8645
22.7233 20.0904 -46.6940  23.0331 14.9730 -42.5619  2.0373
36.4612 47.8580 18.3852  36.2715 50.5065 21.2231  1.4146
90.8027 -2.0831 1.4410  91.1528 -1.6435 0.0447  1.4441
90.9257 -0.5406 -0.9208  88.6381 -0.8985 -0.7239  1.5381
6.7747 -0.2908 -2.4247  5.8714 -0.0985 -2.2286  0.6377
2.0776 0.0795 -1.1350  0.9033 -0.0636 -0.5514  0.9082
"""


def test_ciede2000_gives_the_published_differences():
    rows = torch.tensor([[float(x) for x in line.split()] for line in SHARMA.split("\n") if line],
                        dtype=torch.float64)  # fmt: skip
    assert rows.shape == (34, 7)
    there, back = ciede2000(rows[:, :3], rows[:, 3:6]), ciede2000(rows[:, 3:6], rows[:, :3])
    assert (there - rows[:, 6]).abs().max() < 6e-5
    assert (back - rows[:, 6]).abs().max() < 6e-5
    assert (ciede2000(rows[:, :3].float(), rows[:, 3:6].float()) - rows[:, 6]).abs().max() < 0.05


def test_lab_of_known_colours():
    pixels = np.array([[[255, 255, 255], [0, 0, 0]], [[255, 0, 0], [119, 119, 119]]], np.uint8)
    known = [[[100, 0, 0], [0, 0, 0]], [[53.24, 80.09, 67.20], [50.03, 0, 0]]]
    assert (lab_of(pixels) - torch.tensor(known)).abs().max() < 0.02


def speech(rng: np.random.Generator, frames: int) -> np.ndarray:
    """A mouth's way: noise of short memory."""
    return np.convolve(rng.normal(size=frames + 4), np.ones(5) / 5, mode="valid")


def test_correlation_lag_and_control_of_a_late_mouth():
    rng = np.random.default_rng(0)
    true = speech(rng, 2000)
    late = np.roll(true, 3) + 0.01 * rng.normal(size=2000)
    assert best_lag(late, true) == 3 and best_lag(true, late) == -3
    assert correlation(true, 2 * true + 1) == pytest.approx(1)
    shifted = shifted_correlations(true, true)
    assert len(shifted) == 20 and np.abs(shifted).max() < 0.25 and abs(np.mean(shifted)) < 0.05
    assert shifted_correlations(true[: 2 * SHIFT - 1], true[: 2 * SHIFT - 1]) == []
    gaps = np.where(np.arange(2000) % 7 == 0, np.nan, true)
    assert correlation(gaps, true) == pytest.approx(1)
    assert correlation(true, np.ones(2000)) is None and best_lag(true[:20], true[:20]) is None


def test_lips_in_each_window_and_how_late_they_are():
    true = speech(np.random.default_rng(2), 28 * 40)
    late = np.roll(true, 2)
    late[28:56] = 0.0  # a mouth that stays shut
    found = windowed_correlations(late, true, 28, 5)
    lags = best_lags(found)
    assert found.shape == (40, 11) and np.isnan(found[1]).all() and np.isnan(lags[1])
    others = np.delete(np.arange(40), 1)[1:]  # the first window has begun with the end
    assert (lags[others] == 2).all() and found[others, 7] == pytest.approx(1)
    assert (best_lags(windowed_correlations(true, late, 28, 5))[2:] == -2).all()


def test_partial_correlation_takes_loudness_away():
    """A mouth that follows the loudness alone has none; one that follows the rest keeps it."""
    rng = np.random.default_rng(1)
    loud, rest, noise = (rng.normal(size=20000) for _ in range(3))
    true = loud + rest
    loud_mouth = loud + 0.5 * noise
    assert correlation(loud_mouth, true) > 0.6
    assert abs(partial_correlation(loud_mouth, true, loud)) < 0.03
    good = partial_correlation(loud + rest + noise, true, loud)
    assert good == pytest.approx(math.sqrt(0.5), abs=0.02)
    # The textbook's formula from the three correlations.
    a, b, c = (correlation(*pair) for pair in ((loud_mouth, true), (loud_mouth, loud),
                                               (true, loud)))  # fmt: skip
    textbook = (a - b * c) / math.sqrt((1 - b**2) * (1 - c**2))
    assert partial_correlation(loud_mouth, true, loud) == pytest.approx(textbook, abs=1e-9)


def test_closings_are_counted():
    blink = np.array([0.9, 0.1, 0.3, 0.6, 0.9, 0.4, np.nan, 0.7, 0.2])
    assert count_closings(blink) == 3 and count_closings(np.zeros(5)) == 0


def test_planted_drift_lies_in_its_interval():
    """Five streams that lose 0.02 a chunk; then with jumps that a straight line would follow."""
    rng = np.random.default_rng(2)
    streams = [5 - 0.02 * np.arange(200) + rng.normal(size=200) for _ in range(5)]
    found = estimate([slope(values) for values in streams])
    assert found.low < -0.02 < found.high < -0.018 and found.count == 5
    for values in streams:
        values[180 + rng.integers(20, size=3)] += 50
        assert slope(values) == pytest.approx(-0.02, rel=0.15)
    still = estimate([slope(rng.normal(size=200)) for _ in range(5)])
    assert still.low < 0 < still.high
    steps = np.concatenate([np.zeros(54), rng.normal(size=90), np.full(54, -3.0)])
    assert change(steps, 54) == -3 and change(steps[:2], 54) == 0 and change(steps[:1], 54) is None
    assert slope(np.arange(1e5)) == 1  # and no 5e9 pairs
    assert slope(np.array([1.0, np.nan, 5.0])) == 2 and slope(np.array([1.0])) is None


@pytest.mark.parametrize("true", [0.6, 1.05])
def test_planted_contraction_lies_in_its_interval(true):
    rng = np.random.default_rng(3)
    twins = [0.2 * true ** np.arange(9) * np.exp(0.2 * rng.normal(size=9)) for _ in range(6)]
    found = estimate([contraction(twin, 1e-3) for twin in twins], logarithmic=True)
    assert found.low < true < found.high and found.high - found.low < 0.2


def test_contraction_stops_at_the_floor():
    exact = 0.5 ** np.arange(12)
    assert contraction(np.maximum(exact, 5e-4), 1e-3) == pytest.approx(0.5)
    assert contraction([1.0, 0.0, 0.0], 1e-3) is None


def test_estimates_of_few_streams():
    assert estimate([None, 2.0]).to_json() == {"mean": 2, "low": None, "high": None, "count": 1}
    assert estimate([]).mean is None
    sides = estimate([1.0, 4.0], logarithmic=True)
    assert sides.mean == pytest.approx(2) and sides.low * sides.high == pytest.approx(4)


@pytest.mark.parametrize("count", [2, 3, 9, 12, 40])
def test_intervals_hold_the_truth_as_often_as_they_say(count):
    rng = np.random.default_rng(7)
    ends = [estimate(rng.normal(size=count).tolist()) for _ in range(2000)]
    held = np.mean([end.low < 0 < end.high for end in ends])
    assert held == pytest.approx(0.95, abs=0.015)


def test_the_median_is_that_of_nine():
    pictures = np.random.default_rng(4).integers(0, 256, (3, 7, 9), dtype=np.uint8)
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1)), mode="edge")
    nine = [padded[:, y : y + 7, x : x + 9] for y in range(3) for x in range(3)]
    assert np.array_equal(median3(pictures), np.median(nine, axis=0))


def test_sharpness_sees_edges_and_no_specks():
    everywhere = np.ones((32, 32), bool)
    step = np.zeros((1, 32, 32, 3), np.uint8)
    step[:, :, 16:] = 100
    energy = edges(step, everywhere)
    assert energy == pytest.approx(100**2 / 32)
    soft = step.copy()
    soft[:, :, 15:17] = 33, 33, 33
    soft[:, :, 16] = 67
    assert edges(soft, everywhere) < 0.4 * energy
    specks = step.copy()
    specks[:, 4::8, 4::8] = 255
    assert edges(specks, everywhere) == pytest.approx(energy)


def test_differences_of_pictures():
    grey = np.full((2, 4, 4, 3), 100, np.uint8)
    off = grey.copy()
    off[1, 0] = 110
    row = np.zeros((4, 4), bool)
    row[0] = True
    known = 10 * np.log10(255**2 / 25)
    assert decibels(off, grey) == pytest.approx([MOST_DB, known])
    assert decibels(off, grey, row)[1] == pytest.approx(10 * np.log10(255**2 / 100))
    assert difference(off, grey[:1]).tolist() == [0, 2.5]
    assert difference(off, grey, ~row).tolist() == [0, 0]


def test_a_jump_at_every_seam_is_seen():
    motion = np.tile(np.array([3.0, 1, 1, 1]), 5)
    seams = seam_ratio(motion, 4)
    assert np.isnan(seams[0]) and seams[1:].tolist() == [3, 3, 3, 3]
    assert np.isnan(seam_ratio(np.zeros(8), 4)).all()
