"""Speed of ``add_residual``."""

from op_suite import suite

test_speed = suite("add_residual")
