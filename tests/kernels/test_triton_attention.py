"""The Triton attentions at the ends of their blocks of keys, where the contract's cases are not."""

import pytest
import torch
from torch import Generator, Tensor

from livetalk_kernels.backends.triton_launch import supports
from livetalk_kernels.ops._attention import plain_attention
from livetalk_kernels.ops.chunk_attention import chunk_attention
from livetalk_kernels.ops.context_attention import context_attention
from livetalk_kernels.spec import Case

REASON = supports(Case(op="chunk_attention", device=torch.device("cpu"), dtype=torch.float32))
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))
LENGTHS = (1, 16, 17, 63, 64, 65, 127, 128, 129, 256, 257)  # blocks have up to 128 keys


def rows(seed: int, length: int) -> Tensor:
    return torch.randn(1, length, 2, 16, generator=Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [0.0, 0.3, -3.0])
def test_keys_of_any_number_are_as_exact(scale: float) -> None:
    """A masked score is -inf, which times a scale of 0 would be NaN."""
    q = rows(0, 5)
    for length in LENGTHS:
        k, v = rows(1, length), rows(2, length)
        out, lse = chunk_attention(q, k, v, scale=scale, backend="triton")
        true_out, true_lse = plain_attention(q.double(), k.double(), v.double(), scale)
        torch.testing.assert_close(out.double(), true_out, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(lse.double(), true_lse, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("repeats", [1, 449])
def test_the_last_key_alone_is_repeated(repeats: int) -> None:
    """Wherever it is in its block."""
    q = 4 * rows(0, 5)
    for length in (1, 63, 64, 65, 128, 129):
        image, text = (rows(1, 65), rows(2, 65)), (rows(3, length), rows(4, length))
        out = context_attention(q, *image, *text, text_repeats=repeats, backend="triton")
        true = plain_attention(q.double(), *(x.double() for x in image))[0]
        true += plain_attention(q.double(), *(x.double() for x in text), last_repeats=repeats)[0]
        torch.testing.assert_close(out.double(), true, atol=4e-6, rtol=1e-5)
