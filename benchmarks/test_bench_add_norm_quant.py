"""Speed of ``add_norm_quant``."""

from op_suite import suite

test_speed = suite("add_norm_quant")
