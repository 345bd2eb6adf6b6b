"""Rotary tables and the timestep's sinusoid against the published model, and their symmetries."""

import pytest
import torch
from torch import Tensor

from livetalk_kernels.ops import bind_ops
from livetalk_model.dit import sinusoid
from livetalk_model.rope import RopeTable, axis_widths, rope_table, rotate_1d

GRID = (3, 4, 6)


def rotate(x_BLHd: Tensor, table: RopeTable) -> Tensor:
    """Rotate adjacent pairs as complex numbers, in float64."""
    pairs = torch.view_as_complex(x_BLHd.double().unflatten(-1, (-1, 2)))
    turns = torch.complex(table.cos.double(), table.sin.double())[:, None]
    return torch.view_as_real(pairs * turns).flatten(-2)


def compare(q: Tensor, expected: Tensor) -> None:
    """The table alone, then through the op that the model calls."""
    heads, width = q.shape[2:]
    table = rope_table(GRID, width)
    torch.testing.assert_close(rotate(q, table), expected.double(), rtol=0, atol=1e-6)
    flat, ones = q.flatten(2), torch.ones(heads * width)
    ops = bind_ops(device="cpu", dtype=torch.float32)
    out, _ = ops.rms_norm_rope(flat, flat, ones, ones, table.cos, table.sin, num_heads=heads)
    rms = (flat.square().mean(-1) + 1e-6).sqrt()  # undoes the norm, which a rotation leaves alone
    torch.testing.assert_close(out * rms[..., None, None], expected, rtol=0, atol=5e-6)


def test_published_rotation(small_golden):
    tensors = small_golden("rope")
    compare(tensors["q"], tensors["q_out_3x4x6"])


def test_published_rotation_of_128(golden):
    tensors = golden("misc")
    compare(tensors["rope.q_hd128"], tensors["rope.q_out_3x4x6_hd128"])


@pytest.mark.parametrize("width", [32, 128])
def test_published_angles(golden, width):
    """Row p: the angles of a token at frame, row and column p."""
    angles = golden("misc")[f"rope.freqs_angle_first64_hd{width}"]
    size = 8
    table = rope_table((size,) * 3, width)
    diagonal = torch.arange(size) * (size * size + size + 1)
    difference = torch.polar(torch.ones_like(angles[:size]), angles[:size])
    torch.testing.assert_close(table.cos[diagonal], difference.real.float())
    torch.testing.assert_close(table.sin[diagonal], difference.imag.float())


def test_published_1d_rotation(small_golden):
    tensors = small_golden("rope")
    out = rotate_1d(tensors["1d.x"][0].transpose(0, 1), tensors["1d.pos"])
    torch.testing.assert_close(out.transpose(0, 1)[None], tensors["1d.out"], rtol=0, atol=1e-6)


def test_published_sinusoid(small_golden):
    expected = small_golden("rope")["sinusoid_256"]
    timesteps = torch.tensor([1000.0, 937.5, 833.3333129882812, 625.0, 1.0])
    out = sinusoid(timesteps, 256)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("width", "widths"), [(128, (22, 21, 21)), (32, (6, 5, 5)), (2, (1, 0, 0))]
)
def test_pairs_of_the_axes(width, widths):
    assert axis_widths(width) == widths
    assert rope_table((2, 3, 4), width).cos.shape == (24, width // 2)


def test_scores_depend_on_distances_only():
    table = rope_table((4, 5, 6), 32)
    random = torch.Generator().manual_seed(0)
    q, k = (torch.randn(32, generator=random).expand(1, 120, 1, 32) for _ in range(2))
    scores = (rotate(q, table)[0, :, 0] @ rotate(k, table)[0, :, 0].T).view(4, 5, 6, 4, 5, 6)
    shifted = scores[1:, 2:, 3:, 1:, 2:, 3:]
    torch.testing.assert_close(shifted, scores[:3, :3, :3, :3, :3, :3], rtol=0, atol=1e-5)
    assert scores.std() > 0.1


def test_1d_rotation_in_other_dtypes():
    x = torch.randn(5, 3, 8, generator=torch.Generator().manual_seed(0))
    position = torch.tensor([0.0, 1.0, 2.5, 12.0, 24.0])
    out = rotate_1d(x.bfloat16(), position)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[0], x[0].bfloat16())
    assert torch.equal(out, rotate_1d(x.bfloat16().float(), position).bfloat16())
