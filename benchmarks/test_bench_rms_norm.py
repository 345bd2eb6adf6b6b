"""Speed of ``rms_norm``."""

from op_suite import suite

test_speed = suite("rms_norm")
