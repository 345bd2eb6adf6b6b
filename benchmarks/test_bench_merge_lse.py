"""Speed of ``merge_lse``."""

from op_suite import suite

test_speed = suite("merge_lse")
