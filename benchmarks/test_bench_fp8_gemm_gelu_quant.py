"""Speed of ``fp8_gemm_gelu_quant``."""

from op_suite import suite

test_speed = suite("fp8_gemm_gelu_quant")
