"""The picture of a run's metrics."""

import io

import pytest
from PIL import Image

from livetalk_model.train.loop.curves import CURVES, draw_curves, means, write_curves
from livetalk_model.train.loop.records import METRICS, Records


def size(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as picture:
        return picture.size


def test_every_number_has_a_pane(tmp_path):
    write_curves(tmp_path)
    assert not (tmp_path / CURVES).exists()  # nothing has been recorded
    records = Records(tmp_path / METRICS)
    for step in range(1, 41):
        student = {"student loss": 1 / step, "student lag": 1.0} if step % 5 == 0 else {}
        records.add({"step": step, "seconds": 0.1, "critic loss": 2.0 / step} | student)
    records.close()
    write_curves(tmp_path)
    four = size((tmp_path / CURVES).read_bytes())
    three = size(draw_curves([{"step": 1, "seconds": 1.0, "loss": -1.0, "norm": 0.0}]))
    assert four[0] == three[0] and four[1] == 2 * three[1]  # a second row of panes


def test_means_are_of_neighbours():
    steps, values = means(range(40), [0.0, 1.0] * 20)
    assert len(steps) == 39 and steps[0] == 0.5 and values == pytest.approx([0.5] * 39)
    assert means([3], [7.0]) == ([3], [7.0])
