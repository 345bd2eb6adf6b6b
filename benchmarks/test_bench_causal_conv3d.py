"""Speed of ``causal_conv3d``."""

from op_suite import suite

test_speed = suite("causal_conv3d")
