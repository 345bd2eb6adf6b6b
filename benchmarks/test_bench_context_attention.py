"""Speed of ``context_attention``."""

from op_suite import suite

test_speed = suite("context_attention")
