"""FP8 attention: what smoothing removes, how near both backends are, NaN and Inf."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from livetalk_kernels.errors import UserError
from livetalk_kernels.ops._attention import plain_attention
from livetalk_kernels.ops.chunk_attention import chunk_attention, reference_fp8, triton_fp8
from livetalk_kernels.registry import load_op
from livetalk_kernels.spec import Case
from livetalk_kernels.testing.numerics import calc_diff, max_error, relative_l2

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BACKENDS = ["reference_fp8", "triton_fp8"]
each = pytest.mark.parametrize("backend", BACKENDS)


def devices() -> list[Any]:
    """The CPU, where kernels are interpreted, or a GPU that runs them."""
    case = Case(op="chunk_attention", device=GPU, dtype=torch.bfloat16)
    if triton_fp8.supports(case) is None:
        return [pytest.param(GPU, marks=pytest.mark.gpu, id="cuda")]
    return [pytest.param(CPU, id="cpu")]


def qkv(S: int, *, H: int = 2, d: int = 64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, S, H, d, generator=generator) for _ in range(3))
    return q, k, v


def exact(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return plain_attention(q.double(), k.double(), v.double())


@pytest.mark.parametrize("device", devices())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernels_round_as_the_plain_formula_does(device, dtype):
    """Far nearer to each other than either is to the exact result."""
    spec = load_op("chunk_attention")
    # 16-bit values are often in the middle of two of FP8, and fall to either side of it; so do
    # the scores that a GPU sums in 14 bits.
    out_bound = 1e-6 if dtype == torch.float32 and device == CPU else 1e-4
    for case in spec.cases(device, dtype):
        if case.large:
            continue
        arguments, keywords = spec.make_inputs(case, Generator().manual_seed(3))
        plain = reference_fp8.run(*arguments, **keywords)
        actual = triton_fp8.run(*arguments, **keywords)
        for index, bound in enumerate((out_bound, 1e-6)):
            assert torch.equal(actual[index].isfinite(), plain[index].isfinite()), case
            if plain[index].isfinite().all():
                assert calc_diff(actual[index], plain[index]) < bound, (case, index)


@each
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_an_offset_of_all_keys_does_no_harm(backend, offset):
    """The same to every key: softmax ignores it; FP8 alone would lose what is on top of it."""
    q, k, v = qkv(300)
    k = k + offset * torch.randn(1, 1, 2, 64, generator=Generator().manual_seed(9))
    out, lse = chunk_attention(q, k, v, backend=backend)
    true_out, true_lse = exact(q, k, v)
    assert relative_l2(out, true_out) < 0.07
    assert max_error(lse, true_lse) < 0.1


@each
def test_an_offset_of_all_values_is_exact(backend):
    q, k, v = qkv(300)
    offset = 1000 * torch.randn(1, 1, 2, 64, generator=Generator().manual_seed(9))
    out, _ = chunk_attention(q, k, v + offset, backend=backend)
    true_out, _ = exact(q, k, v)
    assert relative_l2(out - offset, true_out) < 0.07


@each
def test_channels_and_heads_of_any_size_are_as_exact(backend):
    """Scales belong to heads, blocks, rows and channels: no large one swamps a small one."""
    q, k, v = qkv(300)
    sizes = torch.logspace(-6, 6, 64)
    true_out, true_lse = exact(q, k, v)
    out, lse = chunk_attention(
        q * torch.tensor([1e-4, 1e4])[:, None],
        k * torch.tensor([1e4, 1e-4])[:, None],
        v * sizes,
        backend=backend,
    )
    errors = [relative_l2(out[..., c] / sizes[c], true_out[..., c]) for c in range(64)]
    assert max(errors) < 0.12
    assert max_error(lse, true_lse) < 0.1


@each
def test_equal_values_come_back(backend):
    """Weights that FP8 loses are not missed: v less its mean is zero."""
    q, k, _ = qkv(200)
    v = torch.full_like(k, 3.7)
    out, _ = chunk_attention(q, k, v, backend=backend)
    torch.testing.assert_close(out, v, rtol=1e-5, atol=0)


@each
@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_inf_are_seen(backend, bad):
    q, k, v = qkv(150)
    for index, tensor in enumerate((q, k, v)):
        spoilt = tensor.clone()
        spoilt[0, 140, 1, 5] = bad
        arguments = [spoilt if i == index else x for i, x in enumerate((q, k, v))]
        out, lse = chunk_attention(*arguments, backend=backend)
        wrong = ~out.isfinite()
        expected = torch.zeros_like(wrong)
        if index == 0:  # one query
            expected[0, 140, 1] = True
        elif index == 1:  # a key of all queries
            expected[0, :, 1] = True
        else:  # one channel of all queries
            expected[0, :, 1, 5] = True
        assert torch.equal(wrong, expected), index
        assert bool(lse.isfinite().all()) == (index == 2)


@each
def test_no_keys_are_exact_and_wide_heads_refused(backend):
    q, k = torch.randn(1, 3, 1, 64, generator=Generator().manual_seed(0)), torch.empty(1, 0, 1, 64)
    out, lse = chunk_attention(q, k, k, backend=backend)
    true_out, true_lse = chunk_attention(q, k, k, backend="reference")
    torch.testing.assert_close(out, true_out)
    torch.testing.assert_close(lse, true_lse)
    wide = torch.randn(1, 3, 1, 160)
    with pytest.raises(UserError, match="heads of up to 128 channels, not 160"):
        chunk_attention(wide, wide, wide, backend=backend)
