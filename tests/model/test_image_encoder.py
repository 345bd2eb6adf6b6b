"""Image encoders: parity with the published CLIP tower, and damaged files."""

from pathlib import Path

import pytest
import torch
from encoder_samples import clip_weights
from torch.nn import functional

from livetalk_kernels.errors import UserError
from livetalk_model.encoders.image import ImageEncoder, RandomImageEncoder, clip_pixels


def plain_tower(weights: dict[str, torch.Tensor], pixels: torch.Tensor, heads: int, blocks: int):
    """The tower written plainly, in float64."""
    w = {key.removeprefix("visual."): value.double() for key, value in weights.items()}

    def linear(x: torch.Tensor, key: str) -> torch.Tensor:
        return functional.linear(x, w[key + ".weight"], w[key + ".bias"])

    def norm(x: torch.Tensor, key: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], w[key + ".weight"], w[key + ".bias"], 1e-5)

    patch = w["patch_embedding.weight"]
    x = functional.conv2d(pixels.double(), patch, stride=patch.shape[-1]).flatten(2).mT
    x = torch.cat((w["cls_embedding"], x), dim=1) + w["pos_embedding"]
    x = norm(x, "pre_norm")
    for block in range(blocks):
        key = f"transformer.{block}."
        qkv = linear(norm(x, key + "norm1"), key + "attn.to_qkv")
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        out = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(out, key + "attn.proj")
        hidden = functional.gelu(linear(norm(x, key + "norm2"), key + "mlp.0"))
        x = x + linear(hidden, key + "mlp.2")
    return x


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "clip.pth"
    torch.save(clip_weights(), path)
    return path


@pytest.mark.parametrize("size", ["96x64", "256x160"])
def test_golden(golden, golden_checkpoint, size):
    tensors = golden("misc")
    image = (tensors[f"image.crop_{size}"][0, :, 0] / 255 - 0.5) * 2
    stride = 224 // tensors[f"clip.pixels224_{size}"].shape[-1]  # the larger one is stored thinned
    pixels = clip_pixels(image)[..., ::stride, ::stride]
    torch.testing.assert_close(pixels, tensors[f"clip.pixels224_{size}"], rtol=1e-5, atol=1e-5)
    encoder = ImageEncoder.from_checkpoint(
        golden_checkpoint("clip_tiny"), device="cpu", num_heads=4
    )
    expected = tensors[f"clip.out_{size}"]
    out = encoder.encode(image)
    assert out.shape == expected.shape
    assert (out - expected).norm() <= 1e-4 * expected.norm()


def test_formula_on_golden_weights(golden_checkpoint):
    """The published names and 257 tokens, without a published output: its input is a picture."""
    path = golden_checkpoint("clip_tiny")
    weights = torch.load(path, weights_only=True)
    blocks = len([key for key in weights if key.startswith("visual.") and "attn.proj.w" in key])
    image = torch.rand(3, 96, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    out = ImageEncoder.from_checkpoint(path, device="cpu", num_heads=4).encode(image)
    expected = plain_tower(weights, clip_pixels(image), heads=4, blocks=blocks - 1)
    assert out.shape == (1, 257, 64)
    assert (out - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_formula(checkpoint, heads):
    image = torch.rand(3, 40, 72, generator=torch.Generator().manual_seed(1)) * 2 - 1
    encoder = ImageEncoder.from_checkpoint(checkpoint, device="cpu", num_heads=heads)
    out = encoder.encode(image)
    expected = plain_tower(clip_weights(), clip_pixels(image, 56), heads, blocks=2)
    assert out.shape == (1, 17, 24)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def test_other_dtype(checkpoint):
    image = torch.rand(3, 40, 72) * 2 - 1
    exact = ImageEncoder.from_checkpoint(checkpoint, device="cpu", num_heads=2).encode(image)
    half = ImageEncoder.from_checkpoint(
        checkpoint, device="cpu", num_heads=2, dtype=torch.bfloat16
    ).encode(image)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).norm() <= 0.03 * exact.norm()


def test_parts_that_are_not_needed_may_be_absent(tmp_path, checkpoint):
    weights = clip_weights()
    kept = {
        key: value
        for key, value in weights.items()
        if not key.startswith(("textual.", "log_scale", "visual.head"))
    }
    torch.save(kept, tmp_path / "vision.pth")
    image = torch.rand(3, 32, 32)
    whole, vision = (
        ImageEncoder.from_checkpoint(path, device="cpu", num_heads=2).encode(image)
        for path in (checkpoint, tmp_path / "vision.pth")
    )
    assert torch.equal(whole, vision)


QKV = "visual.transformer.0.attn.to_qkv.weight"
DAMAGES = {
    "missing": (lambda w: w.pop("visual.pre_norm.bias"), r"1 missing .visual.pre_norm.bias"),
    "missing qkv": (lambda w: w.pop(QKV), rf"3 missing .{QKV}\[q\]"),
    "wrong qkv": (lambda w: w.update({QKV: torch.zeros(60, 24)}), rf"3 wrong .{QKV}\[q\]: shape"),
    "odd qkv": (lambda w: w.update({QKV: torch.zeros(71, 24)}), rf"1 unexpected .{QKV}\)"),
    "no patches": (lambda w: w.pop("visual.patch_embedding.weight"), "no 4-dimensional tensor"),
    "flat positions": (
        lambda w: w.update({"visual.pos_embedding": torch.zeros(17, 24)}),
        "no 3-dimensional tensor visual.pos_embedding",
    ),
    "not square": (
        lambda w: w.update({"visual.pos_embedding": torch.zeros(1, 16, 24)}),
        "16 tokens",
    ),
    "extra": (lambda w: w.update({"visual.more": torch.zeros(1)}), r"1 unexpected .visual.more"),
    "text only": (
        lambda w: [w.pop(key) for key in list(w) if key.startswith("visual.")],
        "no 4-dimensional tensor",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights(tmp_path, damage):
    change, message = DAMAGES[damage]
    weights = clip_weights()
    change(weights)
    torch.save(weights, tmp_path / "clip.pth")
    with pytest.raises(UserError, match=message) as caught:
        ImageEncoder.from_checkpoint(tmp_path / "clip.pth", device="cpu", num_heads=2)
    assert "\n" not in str(caught.value)
    assert "clip.pth" in str(caught.value)


def test_heads_must_divide(checkpoint):
    with pytest.raises(UserError, match="5 heads"):
        ImageEncoder.from_checkpoint(checkpoint, device="cpu", num_heads=5)


def test_truncated_weights(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"clip.pth: truncated"):
        ImageEncoder.from_checkpoint(checkpoint, device="cpu", num_heads=2)


def test_pixels_of_grey():
    pixels = clip_pixels(torch.zeros(3, 31, 77))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    assert pixels.shape == (1, 3, 224, 224)
    expected = ((0.5 - mean) / std).view(1, 3, 1, 1).expand_as(pixels)
    torch.testing.assert_close(pixels, expected)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (4, 8, 8), (8, 8)])
def test_wrong_shape(shape):
    with pytest.raises(UserError, match="image: expected"):
        RandomImageEncoder(width=8).encode(torch.zeros(shape))


def test_random_encoder():
    image = torch.rand(3, 64, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    out = RandomImageEncoder(width=32).encode(image)
    assert out.shape == (1, 257, 32)
    assert 0.3 < out.std() < 3
    assert torch.equal(out, RandomImageEncoder(width=32).encode(image))
    assert not torch.allclose(out, RandomImageEncoder(width=32, seed=1).encode(image))
    assert not torch.allclose(out, RandomImageEncoder(width=32).encode(image.flip(-1)))
