"""Speed of ``quantize``."""

from op_suite import suite

test_speed = suite("quantize")
