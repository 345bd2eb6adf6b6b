"""The gradients of the training convolution against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from livetalk_model.train.vae.convolution import Padding, convolve

CASES: tuple[tuple[tuple[int, ...], tuple[int, ...], Padding], ...] = (
    ((2, 3, 4, 6, 7), (5, 3, 3, 3, 3), (2, 1, 1)),  # causal: the caller drops the last frames
    ((2, 3, 4, 5, 6), (4, 3, 3, 3, 3), (0, 1, 1)),  # its context is already in front
    ((1, 4, 3, 5, 5), (3, 4, 1, 1, 1), (0, 0, 0)),
    ((2, 3, 2, 5, 4), (4, 3, 1, 2, 2), (0, 1, 1)),  # folded upsampling
    ((1, 2, 5, 4, 4), (3, 2, 3, 1, 1), (2, 0, 0)),
    ((1, 2, 1, 1, 1), (2, 2, 3, 3, 3), (2, 1, 1)),
)


def _gradients(y: Tensor, inputs: tuple[Tensor, Tensor, Tensor], dy: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, inputs, dy)


@pytest.mark.parametrize(("shape", "kernel", "padding"), CASES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_gradients_are_those_of_conv3d(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    padding: Padding,
    dtype: torch.dtype,
    bound: float,
) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, generator=generator, dtype=dtype, requires_grad=True)
        for size in (shape, kernel, kernel[:1])
    )
    inputs = x, weight, bias
    made, true = convolve(*inputs, padding), F.conv3d(*inputs, padding=padding)
    dy = torch.randn(true.shape, generator=generator, dtype=dtype)
    torch.testing.assert_close(made, true, rtol=bound, atol=bound * float(true.detach().norm()))
    for ours, theirs in zip(
        _gradients(made, inputs, dy), _gradients(true, inputs, dy), strict=True
    ):
        assert float((ours - theirs).norm()) <= bound * float(theirs.norm())


def test_only_wanted_gradients_are_computed() -> None:
    x = torch.randn(1, 2, 3, 4, 4)
    weight, bias = torch.randn(2, 2, 3, 3, 3, requires_grad=True), torch.zeros(2)
    convolve(x, weight, bias, (2, 1, 1)).sum().backward()
    assert weight.grad is not None and x.grad is None and bias.grad is None
