"""Speed of ``chunk_attention``."""

from op_suite import suite

test_speed = suite("chunk_attention")
