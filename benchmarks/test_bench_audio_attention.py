"""Speed of ``audio_attention``."""

from op_suite import suite

test_speed = suite("audio_attention")
