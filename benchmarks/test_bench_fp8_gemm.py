"""Speed of ``fp8_gemm``."""

from op_suite import suite

test_speed = suite("fp8_gemm")
