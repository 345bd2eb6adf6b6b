"""Colour correction: parity with the published model, and what must hold for any picture."""

import pytest
import torch

from livetalk_kernels.errors import UserError
from livetalk_model.color import match_color, reference_stats


def random_frames(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(shape[0], 3, shape[1], 1, 1, generator=generator) * 0.5
    return torch.rand(shape[0], 3, *shape[1:], generator=generator) * (1 - low) + low - 0.5


def published_formula(frames: torch.Tensor, image: torch.Tensor, strength: float) -> torch.Tensor:
    """The formula written plainly, in float64."""
    to_xyz = torch.tensor(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ],
        dtype=torch.float64,
    )
    white = torch.tensor([0.95047, 1.0, 1.08883], dtype=torch.float64)

    def lab(x: torch.Tensor) -> torch.Tensor:
        x = (x.double().movedim(1, -1) + 1) / 2
        x = torch.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
        x = (x @ to_xyz.T / white).clamp(1e-8, 1)
        f = torch.where(x > 0.008856, x ** (1 / 3), (903.3 * x + 16) / 116)
        luma, a = 116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1])
        return torch.stack((luma, a, 200 * (f[..., 1] - f[..., 2])), dim=-1)

    def rgb(lab: torch.Tensor) -> torch.Tensor:
        f_y = (lab[..., 0] + 16) / 116
        f = torch.stack((lab[..., 1] / 500 + f_y, f_y, f_y - lab[..., 2] / 200), dim=-1)
        x = torch.where(f**3 > 0.008856, f**3, (116 * f - 16) / 903.3)
        x = x * white @ torch.linalg.inv(to_xyz).T
        curve = 1.055 * x.clamp(min=1e-9) ** (1 / 2.4) - 0.055
        return torch.where(x > 0.0031308, curve, 12.92 * x).clamp(0, 1)

    source, target = lab(frames), lab(image)
    axes = (-3, -2)
    std, mean = torch.std_mean(source, dim=axes, correction=0, keepdim=True)
    std_target, mean_target = torch.std_mean(target, dim=axes, correction=0, keepdim=True)
    matched = rgb((source - mean) * (std_target / std) + mean_target)
    blended = (1 - strength) * (frames.double().movedim(1, -1) + 1) / 2 + strength * matched
    return (blended * 2 - 1).movedim(-1, 1)


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_golden(small_golden, strength):
    tensors = small_golden("color")
    out = match_color(tensors["source"], reference_stats(tensors["reference"]), strength)
    torch.testing.assert_close(out, tensors[f"out_strength{strength}"], rtol=0, atol=5e-5)


def test_golden_statistics(golden):
    tensors = golden("misc")
    stats = reference_stats(tensors["color.reference"])
    std, mean = torch.std_mean(tensors["color.reference_lab"], dim=(0, 1, 2, 3), correction=0)
    torch.testing.assert_close(stats.mean, mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(stats.std, std, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_formula(strength):
    frames, image = random_frames(1, 3, 17, 21), random_frames(1, 1, 17, 21, seed=1)
    out = match_color(frames, reference_stats(image), strength)
    expected = published_formula(frames, image, strength)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=5e-5)


def test_own_statistics_change_nothing():
    frames = random_frames(1, 1, 16, 16) * 0.9
    out = match_color(frames, reference_stats(frames[0, :, 0]), 1.0)
    torch.testing.assert_close(out, frames, rtol=0, atol=1e-4)


def test_result_does_not_depend_on_the_split_into_pieces_or_on_strides():
    frames, image = random_frames(1, 6, 16, 24), random_frames(1, 1, 16, 24, seed=1)
    stats = reference_stats(image)
    whole = match_color(frames, stats, 0.7)
    pieces = [match_color(piece, stats, 0.7) for piece in frames.split((1, 4, 1), dim=2)]
    assert torch.equal(torch.cat(pieces, dim=2), whole)
    strided = frames.to(memory_format=torch.channels_last_3d)
    assert torch.equal(match_color(strided, stats, 0.7), whole)


def test_input_is_left_alone():
    frames = random_frames(1, 2, 16, 16)
    before = frames.clone()
    for strength in (0.5, 1.0):
        assert match_color(frames, reference_stats(frames[:, :, :1]), strength) is not frames
    assert torch.equal(frames, before)


def test_strength_zero_is_off():
    frames = random_frames(1, 2, 16, 16)
    assert match_color(frames, reference_stats(frames[:, :, :1]), 0.0) is frames


@pytest.mark.parametrize("color", [(0.0, 0.0, 0.0), (0.3, -0.2, 0.71), (1.0, -1.0, -1.0)])
def test_flat_frame_stays_flat(color):
    flat = torch.tensor(color).view(1, 3, 1, 1, 1).expand(1, 3, 2, 96, 64)
    out = match_color(flat, reference_stats(random_frames(1, 1, 32, 32)), 1.0)
    assert out.isfinite().all()
    assert (out.amax(dim=(-2, -1)) == out.amin(dim=(-2, -1))).all()


def test_what_is_brighter_than_white_is_white():
    """The end of the range is a frame's brightest byte: just below it 255 would become 254."""
    pixels = torch.tensor([-1.0, 1.0, *[-0.2, 0.2] * 31]).view(1, 1, 1, 8, 8)
    portrait = torch.tensor([-1.0, 1.0]).repeat(32).view(1, 8, 8).expand(3, 8, 8)
    out = match_color(pixels.expand(1, 3, 2, 8, 8), reference_stats(portrait), 1.0)
    assert (out.flatten(3)[..., :2] == torch.tensor([-1.0, 1.0])).all()


def test_extremes_stay_in_range():
    frames = torch.tensor([-1.0, 1.0]).repeat(3 * 64).view(1, 3, 1, 8, 16)
    out = match_color(frames, reference_stats(random_frames(1, 1, 8, 16)), 1.0)
    assert out.isfinite().all()
    assert out.abs().max() <= 1


def test_bfloat16_is_rounded_once():
    frames, image = random_frames(1, 2, 16, 16), random_frames(1, 1, 16, 16, seed=1)
    half, stats = frames.bfloat16(), reference_stats(image.bfloat16())
    out = match_color(half, stats, 1.0)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, match_color(half.float(), stats, 1.0).bfloat16())


def test_nan_stays_visible():
    frames = random_frames(1, 2, 16, 16)
    frames[0, 0, 1, 3, 3] = torch.nan
    out = match_color(frames, reference_stats(random_frames(1, 1, 16, 16)), 1.0)
    assert out[0, :, 0].isfinite().all()
    assert out[0, :, 1].isnan().any()


@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (2, 3, 1, 8, 8), (1, 4, 1, 8, 8)])
def test_wrong_shape_of_frames(shape):
    with pytest.raises(UserError, match="frames: expected"):
        match_color(torch.zeros(shape), reference_stats(torch.zeros(3, 8, 8)), 1.0)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_wrong_strength(strength):
    with pytest.raises(UserError, match="strength"):
        match_color(torch.zeros(1, 3, 1, 8, 8), reference_stats(torch.zeros(3, 8, 8)), strength)


def test_wrong_shape_of_image():
    with pytest.raises(UserError, match="image: expected"):
        reference_stats(torch.zeros(1, 3, 8, 8))
