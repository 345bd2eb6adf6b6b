"""What the contracts' cases leave out of the compiled attention: odd widths, memory, threads."""

import pytest
import torch
from torch import Generator, Tensor

from livetalk_kernels.backends import cpu
from livetalk_kernels.registry import load_backend
from livetalk_kernels.spec import Case
from livetalk_kernels.testing.numerics import check_backend

pytestmark = pytest.mark.skipif(cpu.missing() is not None, reason=str(cpu.missing()))

DTYPES = [torch.float32, torch.bfloat16]


def random(*shape: int, dtype: torch.dtype, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("op", "dims", "options"),
    [
        ("chunk_attention", {"B": 1, "L": 34, "S": 19, "H": 2, "d": 1}, {}),
        ("chunk_attention", {"B": 2, "L": 17, "S": 385, "H": 1, "d": 7}, {"fused": False}),
        ("chunk_attention", {"B": 1, "L": 49, "S": 49, "H": 3, "d": 44}, {"fused": True}),
        ("chunk_attention", {"B": 1, "L": 65, "S": 65, "H": 1, "d": 384}, {"fused": True}),
        ("chunk_attention", {"B": 1, "L": 20, "S": 200, "H": 2, "d": 24}, {"scale": -0.3}),
        ("chunk_attention", {"B": 1, "L": 20, "S": 200, "H": 2, "d": 24}, {"scale": 0.0}),
        ("chunk_attention", {"B": 1, "L": 40, "S": 450, "H": 2, "d": 64}, {"spread": 20.0}),
        ("context_attention", {"B": 1, "L": 33, "I": 257, "S": 193, "H": 2, "d": 40}, {}),
        ("context_attention", {"B": 1, "L": 3, "I": 9, "S": 1, "H": 2, "d": 9}, {}),
        ("context_attention", {"B": 2, "L": 5, "I": 0, "S": 6, "H": 1, "d": 8}, {}),
        ("context_attention", {"B": 2, "L": 5, "I": 6, "S": 0, "H": 1, "d": 8}, {}),
        (
            "context_attention",
            {"B": 1, "L": 21, "I": 5, "S": 400, "H": 2, "d": 16},
            {"text_repeats": 113},
        ),
        (
            "audio_attention",
            {"B": 2, "L": 150, "F": 4, "N": 70, "S": 33, "H": 2, "d": 20},
            {"token_offset": 69},
        ),
    ],
)
@pytest.mark.parametrize("isa", [*cpu.ISAS, "avx512_bf16 in tiles"], indirect=True)
def test_sizes_that_fit_no_tile(
    op: str, dims: dict[str, int], options: dict[str, float], dtype: torch.dtype, isa: str
) -> None:
    case = Case(op=op, device=torch.device("cpu"), dtype=dtype, dims=dims, options=options)
    ok, reason = check_backend(case, "cpu")
    assert ok, f"{isa}: {reason}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_bf16_lse_needs_no_slack(dtype: torch.dtype) -> None:
    q, k, v = random(3, 1, 90, 2, 64, dtype=dtype)
    _, lse = load_backend("chunk_attention", "cpu").run(q, k, v)
    _, exact = load_backend("chunk_attention", "reference").run(*(x.double() for x in (q, k, v)))
    assert (lse - exact).abs().max() < 2e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_threads_do_not_change_a_bit(dtype: torch.dtype) -> None:
    run = load_backend("chunk_attention", "cpu").run
    q, k, v = random(3, 1, 333, 3, 64, dtype=dtype)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(q, k, v))
    finally:
        torch.set_num_threads(before)
    for out, lse in results[1:]:
        assert torch.equal(out, results[0][0]) and torch.equal(lse, results[0][1])


def test_more_keys_than_are_packed_at_a_time() -> None:
    """Heads are packed together up to 32 MiB; these are 40 MiB, in fp32."""
    run = load_backend("chunk_attention", "cpu").run
    q = random(1, 2, 40, 128, dtype=torch.float32)
    k, v = random(2, 1, 1024, 40, 128, dtype=torch.float32)
    out, lse = run(q, k, v)
    for head in range(40):
        one = slice(head, head + 1)
        out_one, lse_one = run(q[:, :, one], k[:, :, one], v[:, :, one])
        assert torch.equal(out[:, :, one], out_one) and torch.equal(lse[:, one], lse_one)
    reference, _ = load_backend("chunk_attention", "reference").run(q, k, v)
    torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_beyond_numbers_are_seen(dtype: torch.dtype) -> None:
    q, k, v = random(3, 1, 5, 1, 8, dtype=dtype)
    q[0, 2, 0, 3] = torch.nan
    out, lse = load_backend("chunk_attention", "cpu").run(q, k, v)
    bad = torch.tensor([False, False, True, False, False])
    assert torch.equal(out[0, :, 0].isnan().all(-1), bad)
    assert torch.equal(out[0, :, 0].isnan().any(-1), bad)
    assert torch.equal(lse[0, 0].isnan(), bad)


def test_what_the_kernel_would_misread_is_refused() -> None:
    run = load_backend("chunk_attention", "cpu").run
    q = random(1, 8, 8, 8, dtype=torch.float32)
    with pytest.raises(RuntimeError, match="contiguous"):
        run(q, q, q.transpose(-1, -2))
    with pytest.raises(RuntimeError, match="same"):
        run(q, q[:, :, :4], q[:, :, :4])
    with pytest.raises(RuntimeError, match="same"):
        run(q, q, q[:, :3])
    with pytest.raises(RuntimeError, match="bfloat16"):
        run(q, q, q.bfloat16())
    with pytest.raises(RuntimeError, match="bfloat16"):
        run(q.half(), q.half(), q.half())
    audio = load_backend("audio_attention", "cpu").run
    with pytest.raises(RuntimeError, match="beyond the last audio frame"):
        audio(q, q[:, None], q[:, None], tokens_per_frame=8, token_offset=1)
    with pytest.raises(RuntimeError, match="needs tokens"):
        audio(q[:, :0], q[:, None], q[:, None], tokens_per_frame=0)
