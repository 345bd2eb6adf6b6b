"""The compiled row-wise kernels where the contracts' cases do not reach."""

import pytest
import torch
from torch import Generator, Tensor

from livetalk_kernels.registry import load_backend, load_op
from livetalk_kernels.spec import as_tuple

CPU = torch.device("cpu")
FP8 = torch.float8_e4m3fn

# Outputs of more than 8 MiB in fp32 and bf16, which are written past the caches; with the
# dimension to cut, of the positional arguments that have it and of the outputs.
LARGE = {
    "add_norm": ({"B": 1, "L": 2100, "D": 2048}, {0: 1, 1: 1}, (1, 1)),
    "add_norm_quant": ({"B": 1, "L": 2100, "D": 2048}, {0: 1, 1: 1}, (1, 1, 1)),
    "add_residual": ({"B": 1, "C": 96, "T": 3, "H": 128, "W": 120}, {0: 2, 1: 2}, (2,)),
    "rms_norm": ({"B": 1, "L": 2100, "D": 2048}, {0: 1}, (1,)),
    "merge_lse": ({"B": 1, "L": 2100, "H": 32, "d": 64}, {0: 1, 1: 2, 2: 1, 3: 2}, (1, 2)),
    "rms_norm_silu": ({"B": 1, "C": 96, "T": 3, "H": 128, "W": 120}, {0: 2}, (2,)),
    "rms_norm_rope": ({"B": 1, "L": 2100, "H": 32, "d": 64, "S": 2100}, {0: 1, 1: 1}, (2, 2)),
}


def run(op: str, *arguments: Tensor | None, **keywords: object) -> tuple[Tensor, ...]:
    return as_tuple(load_backend(op, "cpu").run(*arguments, **keywords))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("op", LARGE)
def test_large_results_are_those_of_their_parts(isa: str, op: str, dtype: torch.dtype) -> None:
    """Whatever is written past the caches is the same as what is not."""
    dims, cut, outputs = LARGE[op]
    options = {"channels_last": True, "layout": "head", "bias": True}
    case = load_op(op).cases(CPU, dtype)[0].at("large", options=options, **dims)
    positional, keywords = load_op(op).make_inputs(case, Generator().manual_seed(5))
    whole = run(op, *positional, **keywords)
    assert whole[0].nbytes >= 8 << 20
    length = positional[0].shape[cut[0]]
    for start in range(0, length, -(-length // 3)):
        size = min(-(-length // 3), length - start)
        part = [
            x.narrow(cut[index], start, size).contiguous() if index in cut else x
            for index, x in enumerate(positional)
        ]
        if op == "rms_norm_rope":
            keywords["row_offset"] = start
        if op == "rms_norm_silu":
            part[0] = part[0].contiguous(memory_format=torch.channels_last_3d)
        for piece, full, dim in zip(run(op, *part, **keywords), whole, outputs, strict=True):
            expected = full.narrow(dim, start, size)
            assert torch.equal(
                piece.view(torch.uint8) if piece.dtype == FP8 else piece,
                expected.view(torch.uint8) if piece.dtype == FP8 else expected,
            )


def test_e4m3_is_torchs_rounding(isa: str) -> None:
    """Every bf16 number up to 448, and fp32 numbers about every midpoint; the scale is 1."""
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    halves = halves[halves.abs() <= 448].float()
    codes = torch.arange(127, dtype=torch.uint8).view(FP8).double()
    middles = ((codes[1:] + codes[:-1]) / 2).float()
    infinity = torch.tensor(torch.inf)
    near = [middles, torch.nextafter(middles, infinity), torch.nextafter(middles, -infinity)]
    values = torch.cat([halves, *near, *(-x for x in near), torch.tensor([448.0])])
    q, scale = run("quantize", values[None], block=None)
    assert scale.item() == 1
    assert torch.equal(q[0].view(torch.uint8), values.to(FP8).view(torch.uint8))


def test_rows_without_values_have_scale_one() -> None:
    q, scale = run("quantize", torch.zeros(3, 0), block=None)
    assert q.shape == (3, 0) and torch.equal(scale, torch.ones(3, 1))


def test_bf16_keeps_denormals_and_nan(isa: str) -> None:
    x = torch.ones(2, 40, dtype=torch.bfloat16)
    x[1, 3] = torch.nan
    (out,) = run("rms_norm", x, torch.full((40,), 3e-39), eps=0.0)
    assert (out[0] == torch.tensor(3e-39).bfloat16()).all() and out[0].any()
    assert out[1].isnan().all()


@pytest.mark.parametrize("shape", ["channels_last", "planar"])
@pytest.mark.parametrize("biased", [False, True])
def test_rms_norm_silu_of_large_and_broken_pixels(isa: str, shape: str, biased: bool) -> None:
    x = torch.randn(1, 40, 1, 5, 7, generator=Generator().manual_seed(1))
    x[0, :, 0, 1, 1] *= 1e15
    x[0, 3, 0, 2, 2] = torch.nan
    if shape == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last_3d)
    gamma = torch.linspace(-300.0, 300.0, 40)  # SiLU saturates on both sides
    bias = torch.linspace(-2.0, 2.0, 40) if biased else None
    (out,) = run("rms_norm_silu", x, gamma, bias)
    expected = load_backend("rms_norm_silu", "reference").run(x, gamma, bias)
    assert torch.equal(out.isnan(), expected.isnan()) and int(out.isnan().sum()) == 40
    assert torch.allclose(out, expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_rms_norm_silu_of_a_slice(isa: str) -> None:
    """Memory with gaps is copied first."""
    x = torch.randn(2, 12, 3, 5, 9).contiguous(memory_format=torch.channels_last_3d)[..., 1:7]
    gamma = torch.randn(12)
    (out,) = run("rms_norm_silu", x, gamma)
    (expected,) = run("rms_norm_silu", x.contiguous(), gamma)
    assert torch.allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_add_residual_at_any_distance(isa: str) -> None:
    """Slices and other memory formats, copied or not, give the very sums of the reference."""
    base = torch.randn(2, 21, 4, 6, 9).contiguous(memory_format=torch.channels_last_3d)
    planar, bias = torch.randn(base.shape), torch.randn(21)
    for x in (base, base[:1, :, 2:], base[:, :, 1:], base[..., 2:7], base[:, 3:20]):
        y, few = planar[tuple(map(slice, x.shape))], bias[: x.shape[1]]
        for arguments in ((x, y, few), (y, x, few), (x, x, few)):
            (out,) = run("add_residual", *arguments)
            expected = load_backend("add_residual", "reference").run(*arguments)
            assert out.is_contiguous(memory_format=torch.channels_last_3d)
            assert torch.equal(out, expected)


def test_rows_at_any_distance(isa: str) -> None:
    """Also where the leading dimensions are not one in memory, or values are not neighbours."""
    base = torch.randn(3, 8, 100)
    weight = torch.randn(40)
    for x in (
        base[:, 1:6, 7:47],
        base[::2, :, :40],
        base.transpose(0, 1)[..., :40],
        base[..., ::2][..., :40],
        base[:1, :, :40].expand(3, 8, 40),
    ):
        (expected,) = run("rms_norm", x.contiguous(), weight)
        (out,) = run("rms_norm", x, weight)
        assert out.is_contiguous() and torch.equal(out, expected)


@pytest.mark.parametrize(
    ("op", "arguments", "message"),
    [
        ("rms_norm", (torch.ones(2, 8), torch.ones(7)), "weight has 7 elements, not 8"),
        ("add_norm", (torch.ones(2, 8), torch.ones(1, 8), None, *torch.ones(2, 8)), "y differs"),
        (
            "add_residual",
            (torch.ones(1, 4, 1, 1, 2), torch.ones(1, 2, 1, 1, 4), torch.ones(4)),
            "y differs",
        ),
        (
            "add_residual",
            (torch.ones(1, 4, 1, 1, 2), torch.ones(1, 4, 1, 1, 2).bfloat16(), torch.ones(4)),
            "y differs",
        ),
        ("add_residual", (torch.ones(1, 4, 2), torch.ones(1, 4, 2), torch.ones(4)), "x and y must"),
        (
            "add_residual",
            (torch.ones(1, 4, 1, 1, 2), torch.ones(1, 4, 1, 1, 2), torch.ones(2)),
            "bias has 2 elements",
        ),
        ("rms_norm", (torch.ones(2, 8).double(), torch.ones(8)), "needs float32 or bfloat16"),
        ("rms_norm_silu", (torch.ones(1, 4, 1, 1, 2), torch.ones(3)), "gamma has 3 elements"),
        (
            "rms_norm_silu",
            (torch.ones(1, 4, 1, 1, 2), torch.ones(4), torch.ones(3)),
            "bias has 3 elements",
        ),
    ],
)
def test_what_would_be_read_beyond_its_end_is_refused(
    op: str, arguments: tuple[Tensor | None, ...], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        run(op, *arguments)
