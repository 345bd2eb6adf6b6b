"""Frame rates: what is accepted, that it is exact, and that sound and frames never drift apart."""

import json
import math
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from livetalk_kernels.errors import UserError
from livetalk_model import StreamOptions
from livetalk_model.cli.main import main
from livetalk_model.media.frame_rate import frame_rate
from livetalk_model.stream.production import Production

NTSC = Fraction(30000, 1001)


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ("25", Fraction(25)), (25, Fraction(25)), (25.0, Fraction(25)), ("25.000", Fraction(25)),
        (" 24 ", Fraction(24)), ("12.5", Fraction(25, 2)), (33.3, Fraction(333, 10)),
        ("29.97", NTSC), (29.97, NTSC), ("29.9700", NTSC), (Fraction(2997, 100), NTSC),
        ("30000/1001", NTSC), (NTSC, NTSC), (30000 / 1001, NTSC), ("29.97003", NTSC),
        ("23.976", Fraction(24000, 1001)), ("23.98", Fraction(24000, 1001)),
        (23.976, Fraction(24000, 1001)), ("24000/1001", Fraction(24000, 1001)),
        ("59.94", Fraction(60000, 1001)), ("119.88", Fraction(120000, 1001)),
        ("47.952", Fraction(48000, 1001)), ("29.9", Fraction(299, 10)),
        ("29.98", Fraction(1499, 50)),
        ("1000000/33333", Fraction(1000000, 33333)), (100 / 3, Fraction(100, 3)),
    ],
)  # fmt: skip
def test_rates(given: float | str | Fraction, rate: Fraction) -> None:
    assert frame_rate(given) == rate


@pytest.mark.parametrize(
    "given",
    ["", "x", "nan", "inf", "-1", "0", "1/0", "1.5.2", ".", "1e2", "1e999999999", "9" * 50, "25fps",
     "25/1/1", "\u0662\u0665", 0, -1.0, 1e-9, 1e300, float("nan"), float("inf"), 1001],
)  # fmt: skip
def test_what_is_no_rate(given: float | str) -> None:
    with pytest.raises(UserError, match=r"^frame rate ") as caught:
        frame_rate(given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 150


def test_a_rate_survives_json_and_is_read_once_only() -> None:
    draw = np.random.default_rng(0)
    for numerator, denominator in draw.integers(1, 100_000, (2000, 2)).tolist():
        exact = Fraction(numerator, denominator)
        if not 5 <= exact <= 120:
            continue
        options = StreamOptions(seed=3, fps=exact)
        sent = json.loads(json.dumps(options.to_json()))
        assert StreamOptions(**sent) == options
        assert frame_rate(options.fps) == options.fps
    for whole in range(5, 121):
        options = StreamOptions(fps=Fraction(whole * 1000, 1001))
        assert StreamOptions(**json.loads(json.dumps(options.to_json()))) == options


@pytest.mark.parametrize("rate", [NTSC, Fraction(24000, 1001), Fraction(25), Fraction(100, 3)])
def test_no_drift_over_hours(rate: Fraction) -> None:
    """Every chunk begins at the sample nearest to its first frame; no frame more than there is."""
    session = SimpleNamespace(options=StreamOptions(fps=float(rate)), _rate=16000, received=0)
    for chunk in range(0, 20_000, 7):
        assert abs(Production._boundary(session, chunk) - chunk * 28 * 16000 / rate) <= Fraction(
            1, 2
        )
    for seconds in (1, 1001, 3600, 36_000):
        for extra, more in ((0, 0), (1, 1)):  # one sample beyond a whole frame is a frame
            whole = math.floor(seconds * rate)
            session.received = math.floor(whole * 16000 / rate) + extra
            exact = session.received * rate / 16000
            assert Production.total_frames.fget(session) == math.ceil(exact) <= whole + more


def test_the_command_line_refuses_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["generate", "--portrait", "p.png", "--audio", "a.wav", "--output", "o.mp4",
              "--fps", "fast"])  # fmt: skip
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert "--fps: frame rate 'fast': is not a number; write 25, 29.97 or 30000/1001" in error
