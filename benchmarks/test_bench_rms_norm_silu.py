"""Speed of ``rms_norm_silu``."""

from op_suite import suite

test_speed = suite("rms_norm_silu")
