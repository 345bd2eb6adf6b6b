"""Epilogues that ``quack`` compiles into its FP8 product, written per value as it requires."""

from typing import Any

from quack.activation import gelu_tanh_approx
from quack.epilogue import gemm_epilogue
from quack.epilogue.ops import ColVecLoad, RowVecLoad

VECTORS = {
    "scale_a": ColVecLoad("scale_a"),
    "scale_b": RowVecLoad("scale_b"),
    "bias": RowVecLoad("bias"),
}


@gemm_epilogue(ops=VECTORS)
def scaled(acc: Any, scale_a: Any, scale_b: Any, bias: Any) -> dict[str, Any]:
    """Scale and add the bias."""
    return {"D": acc * scale_a * scale_b + bias}


@gemm_epilogue(ops=VECTORS)
def scaled_gelu(acc: Any, scale_a: Any, scale_b: Any, bias: Any) -> dict[str, Any]:
    """Scale, add the bias, and apply GELU."""
    return {"D": gelu_tanh_approx(acc * scale_a * scale_b + bias)}
