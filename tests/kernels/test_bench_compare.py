"""How often noise is called a change, and how often a change of 10 % is found."""

from collections.abc import Callable

import numpy as np
import pytest

from livetalk_kernels.bench.compare import (
    ALARM,
    DRIFT,
    MIN_PAIRS,
    TOLERANCE,
    Change,
    paired,
    unpaired,
)

PAIRS, NOISE, TRIALS, DRAWS = 20, 0.05, 200, 500
MOST = 0.03  # share of false alarms where 1 % is meant
Random = np.random.Generator


def normal(random: Random, count: int) -> np.ndarray:
    return random.normal(0, NOISE, count)


def outliers(random: Random, count: int) -> np.ndarray:
    """One chunk in twelve is disturbed, by 60 % on average."""
    return random.normal(0, NOISE / 2, count) + (random.random(count) < 0.08) * random.exponential(
        0.6, count
    )


def heavy_tails(random: Random, count: int) -> np.ndarray:
    return random.standard_t(3, count) * NOISE / 3**0.5


def skewed(random: Random, count: int) -> np.ndarray:
    """What is disturbed is never faster."""
    return random.exponential(NOISE, count)


def autocorrelated(random: Random, count: int, rho: float = 0.7) -> np.ndarray:
    x = random.normal(0, NOISE, count)
    for i in range(1, count):
        x[i] = rho * x[i - 1] + (1 - rho**2) ** 0.5 * x[i]
    return x


def drift(random: Random, count: int) -> np.ndarray:
    """The machine becomes slower by 60 % while it measures."""
    return random.normal(0, NOISE / 5, count) + np.linspace(0, 0.6, count)


def wandering(random: Random, count: int) -> np.ndarray:
    return np.cumsum(random.normal(0, NOISE, count))


def second_is_slower(random: Random, count: int) -> np.ndarray:
    """The second of each pair finds a colder cache."""
    return random.normal(0, NOISE, count) + 0.05 * (np.arange(count) % 2)


Noise = Callable[[Random, int], np.ndarray]
NOISES = (
    normal, outliers, heavy_tails, skewed, autocorrelated, drift, wandering, second_is_slower,
)  # fmt: skip


def measured(noise: Noise, random: Random, slowdown: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Times of 0.3 s on average, taken in the order A B, B A, ..."""
    first, second = 0.3 * np.exp(noise(random, 2 * PAIRS)).reshape(PAIRS, 2).T
    swapped = np.arange(PAIRS) % 2 == 1
    a, b = np.where(swapped, second, first), np.where(swapped, first, second)
    return a, b * (1 + slowdown)


def verdicts(noise: Noise, slowdown: float, tolerance: float, trials: int) -> list[str]:
    random = np.random.default_rng(7)
    return [
        paired(*measured(noise, random, slowdown), tolerance=tolerance, draws=DRAWS).verdict
        for _ in range(trials)
    ]


@pytest.mark.parametrize("noise", NOISES)
def test_noise_is_no_change(noise: Noise) -> None:
    """Without the tolerance, which would hide how well the interval is calibrated."""
    alarms = TRIALS - verdicts(noise, 0.0, 0.0, TRIALS).count("no change")
    assert alarms / TRIALS <= MOST


@pytest.mark.parametrize("noise", NOISES)
def test_a_slowdown_of_a_tenth_is_found(noise: Noise) -> None:
    found = verdicts(noise, 0.1, TOLERANCE, 100)
    assert found.count("slower") > 95
    assert "faster" not in found


def test_the_estimate_is_the_truth_and_the_interval_holds_it() -> None:
    random = np.random.default_rng(3)
    changes = [paired(*measured(drift, random, 0.2), draws=DRAWS) for _ in range(50)]
    assert np.mean([change.ratio for change in changes]) == pytest.approx(1.2, rel=0.003)
    assert sum(change.low < 1.2 < change.high for change in changes) >= 48
    assert all(change.level == 1 - ALARM and change.count == PAIRS for change in changes)


def test_a_steady_drift_does_not_widen_the_interval() -> None:
    """It moves every second pair up and the others down, each by 5 %."""

    def steep(random: Random, count: int) -> np.ndarray:
        return random.normal(0, 0.002, count) + 0.05 * np.arange(count)

    change = paired(*measured(steep, np.random.default_rng(3), 0.2))
    assert change.low < 1.2 < change.high and change.high / change.low < 1.01


def test_an_interval_is_as_often_wrong_as_it_says() -> None:
    """Not less often: it would be too wide."""
    random = np.random.default_rng(2)
    changes = [
        paired(*measured(normal, random), alarm=0.2, tolerance=0.0, draws=DRAWS)
        for _ in range(TRIALS)
    ]
    wrong = sum(change.verdict != "no change" for change in changes)
    assert 0.13 < wrong / TRIALS < 0.27


def test_both_directions_are_alike() -> None:
    a, b = measured(normal, np.random.default_rng(1), 0.15)
    there, back = paired(a, b), paired(b, a)
    assert (there.verdict, back.verdict) == ("slower", "faster")
    assert there.ratio * back.ratio == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)


def test_the_same_times_give_the_same_answer() -> None:
    a, b = measured(normal, np.random.default_rng(1))
    assert paired(a, b) == paired(a, b)
    assert paired(a * 1000, b * 1000).ratio == pytest.approx(paired(a, b).ratio)


def test_what_is_called_detectable_is_detected() -> None:
    """Of changes of that size, 19 in 20 are found."""
    random = np.random.default_rng(5)
    least = np.median(
        [paired(*measured(normal, random), draws=DRAWS).detectable for _ in range(100)]
    )
    found = [
        paired(*measured(normal, random, float(least)), draws=DRAWS).verdict for _ in range(TRIALS)
    ]
    assert 0.9 <= found.count("slower") / TRIALS <= 0.99


def test_a_change_within_the_tolerance_is_none() -> None:
    a = np.full(PAIRS, 0.3)
    assert paired(a, a * 1.009).verdict == "no change"
    assert paired(a, a * 1.011).verdict == "slower"
    assert paired(a, a / 1.011).verdict == "faster"
    assert paired(a, a).ratio == 1


def test_more_questions_make_wider_intervals() -> None:
    a, b = measured(normal, np.random.default_rng(1))
    one, ten = paired(a, b), paired(a, b, alarm=ALARM / 10)
    assert ten.low < one.low and one.high < ten.high and ten.level > one.level


@pytest.mark.parametrize("counts", [(20, 20), (8, 40)])
def test_samples_that_are_no_pairs(counts: tuple[int, int]) -> None:
    random = np.random.default_rng(4)

    def once(noise: Noise, slowdown: float, tolerance: float) -> Change:
        a, b = (np.exp(noise(random, count)) for count in counts)
        return unpaired(a, b * (1 + slowdown), tolerance=tolerance, draws=DRAWS)

    for noise in (normal, outliers, skewed):
        changes = [once(noise, 0.0, 0.0) for _ in range(100)]
        assert sum(change.verdict != "no change" for change in changes) <= 4
    found = [once(normal, 0.3, DRIFT).verdict for _ in range(50)]
    assert found.count("slower") >= 48


def test_drift_between_two_runs_is_tolerated_up_to_a_point() -> None:
    a = np.full(8, 0.3)
    assert unpaired(a, a * (1 + DRIFT - 0.001)).verdict == "no change"
    assert unpaired(a, a * (1 + DRIFT + 0.001)).verdict == "slower"


@pytest.mark.parametrize("bad", [[0.1] * (MIN_PAIRS - 1), [0.0] * 20, [float("nan")] * 20])
def test_what_cannot_be_compared_is_a_mistake(bad: list[float]) -> None:
    with pytest.raises(AssertionError):
        paired(bad, bad)
