"""Speed of ``add_norm``."""

from op_suite import suite

test_speed = suite("add_norm")
