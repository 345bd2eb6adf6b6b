"""Quantities in words."""

import pytest

from livetalk_kernels import units


@pytest.mark.parametrize(
    ("form", "cases"),
    [
        (units.seconds, {8.17e-5: "81.7 µs", 0.85: "850 ms", 0.9996: "1 s", 14.7168: "14.7 s"}),
        (units.ms, {14.7168: "14,717 ms", 0.0817: "81.7 ms", 0.0004: "0.4 ms"}),
        (units.duration, {40: "40 s", 99.9: "100 s", 720: "12 min", 12_000: "3 h 20 min"}),
        (
            units.data_size,
            {0: "0 B", 999: "999 B", 999.6: "1.0 kB", 9.5e6: "9.5 MB", 37.8e9: "37.8 GB"},
        ),
        (units.big_count, {7: "7", 1500: "1.5 k", 18_882_046_784: "18.9 B"}),
        (units.prefixed, {1.35e15: "1.35 P", 2.1e10: "21 G", 12.0: "12 ", 0.0: "0 ", 999.6: "1 k"}),
        (units.percent, {0.614: "61 %", 0.0067: "0.67 %", 1.04: "104 %"}),
        (units.percent_change, {1.098: "+9.8", 0.5: "-50.0", 3.0: "+200"}),
    ],
)  # fmt: skip
def test_three_digits_and_the_unit_that_suits(form, cases):
    assert {value: form(value) for value in cases} == cases
