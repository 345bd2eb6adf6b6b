"""The VAE in training: over a whole video at once, channels-last, in bf16 where that is fast.

A stream's cache splits a video into pieces of 1, 4, 4, ... frames, and every convolution into as
many calls, whose histories autograd then has to copy. Nothing depends on later frames, so one call
on all frames after two frames of zeros gives the same result; only the first frame is separate
where frames are halved or doubled. On two cores an update takes a sixth of the time.

Residual blocks at the larger resolutions may be skipped, which makes an update even cheaper, as if
the weights of a block's last convolution were zero.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...vae import SPATIAL, VAE
from ...vae_layers import (
    DOWNSAMPLE_PADDING,
    AttentionBlock,
    CausalConv,
    ConvWeights,
    Downsample,
    Head,
    NormSiLU,
    ResidualBlock,
    Upsample,
    fold_upsampling,
)
from ..demo import training_dtype
from .convolution import LAYOUT, ONCE, Padding, Stride, convolve, run
from .pixel_norm import norm_silu

NO_BLOCKS = 2 * SPATIAL
"""Value of ``blocks`` in `round_trip` that skips all."""


def round_trip(
    vae: VAE,
    video_BCTHW: Tensor,
    *,
    dtype: torch.dtype | None = None,
    blocks: int = 1,
    coder_learns: bool = True,
) -> Tensor:
    """Encode and decode pictures, like `VAE.encode` and `VAE.decode`.

    Args:
        vae: VAE with float32 weights, which get gradients.
        video_BCTHW: Pixels in -1..1, [B, 3, 1 + 4 k, H, W].
        dtype: Dtype of intermediates; by default `training_dtype` of the video's device.
        blocks: Use residual blocks where a position covers at least this many pixels: 1 for all;
            `NO_BLOCKS` for none.
        coder_learns: Whether the encoder gets gradients.

    Returns:
        Pixels of the same shape, float32, not clamped.
    """
    x = video_BCTHW.to(dtype or training_dtype(video_BCTHW.device))
    x = x.contiguous(memory_format=LAYOUT)
    widest = video_BCTHW.shape[4] // blocks
    with torch.set_grad_enabled(coder_learns and torch.is_grad_enabled()):
        z = _encode(vae, x, widest)
    return _decode(vae, z, widest).float()


@torch.no_grad()
def encode_whole(vae: VAE, video_BCTHW: Tensor) -> Tensor:
    """Encode a video like `VAE.encode`, in a third of the time where bf16 is fast.

    Args:
        vae: Prepared.
        video_BCTHW: Pixels in -1..1, [B, 3, 1 + 4 k, H, W].

    Returns:
        Latents [B, 16, 1 + k, H/8, W/8], float32, normalised; bf16 deviates by about 1 % of their
        spread, less than the VAE's own error.
    """
    x = video_BCTHW.to(training_dtype(video_BCTHW.device)).contiguous(memory_format=LAYOUT)
    mean, std = (
        torch.tensor(values, device=x.device).view(-1, 1, 1, 1)
        for values in (vae.config.mean, vae.config.std)
    )
    return (_encode(vae, x, video_BCTHW.shape[4]).float() - mean) / std


def _encode(vae: VAE, x: Tensor, widest: int) -> Tensor:
    """Map pixels to latents, not normalised."""
    encoder = vae.encoder
    x = _stages(encoder.downsamples, _causal(encoder.conv1, x), widest)
    moments = _causal(vae.conv1, _head(encoder.head, _middle(encoder.middle, x, widest)))
    return moments[:, : vae.config.z_dim]  # the rest is the log variance


def _decode(vae: VAE, z: Tensor, widest: int) -> Tensor:
    """Map latents, not normalised, to pixels."""
    decoder = vae.decoder
    x = _causal(decoder.conv1, _causal(vae.conv2, z.contiguous(memory_format=LAYOUT)))
    return _head(
        decoder.head, _stages(decoder.upsamples, _middle(decoder.middle, x, widest), widest)
    )


def _stages(layers: Iterable[nn.Module], x: Tensor, widest: int) -> Tensor:
    for layer in layers:
        if isinstance(layer, ResidualBlock):
            x = _residual(layer, x, widest)
        elif isinstance(layer, Downsample):
            x = _down(layer, x)
        else:
            assert isinstance(layer, Upsample)
            x = _up(layer, x)
    return x


def _middle(layers: nn.ModuleList, x: Tensor, widest: int) -> Tensor:
    before, attention, after = layers
    if x.shape[4] > widest:
        return x
    assert isinstance(before, ResidualBlock) and isinstance(after, ResidualBlock)
    assert isinstance(attention, AttentionBlock)
    return _residual(after, _attention(attention, _residual(before, x, widest)), widest)


def _residual(block: ResidualBlock, x: Tensor, widest: int) -> Tensor:
    shortcut = x if block.shortcut is None else _causal(block.shortcut, x)
    if x.shape[4] > widest:
        return shortcut
    branch = block.residual
    h = _normed(branch["0"], branch["2"], x)
    h = _normed(branch["3"], branch["6"], h)
    return h + shortcut


def _head(head: Head, x: Tensor) -> Tensor:
    return _normed(head["0"], head["2"], x)


def _normed(norm: nn.Module, conv: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(norm, NormSiLU) and isinstance(conv, CausalConv)
    return _causal(conv, norm_silu(x, norm.gamma))


def _attention(block: AttentionBlock, x: Tensor) -> Tensor:
    """Attend among the pixels of each frame."""
    images_NLC = x.permute(0, 2, 3, 4, 1).flatten(2, 3).flatten(0, 1)
    unit = F.normalize(images_NLC.float(), dim=-1) * x.shape[1] ** 0.5
    normed = (unit * block.norm.gamma.float().flatten()).to(x.dtype)
    q, k, v = _pointwise(block.to_qkv, normed).unsqueeze(1).chunk(3, dim=-1)
    mixed = F.scaled_dot_product_attention(q, k, v).squeeze(1)
    out = images_NLC + _pointwise(block.proj, mixed)
    return out.unflatten(1, x.shape[3:]).unflatten(0, (len(x), -1)).permute(0, 4, 1, 2, 3)


def _pointwise(conv: ConvWeights, x: Tensor) -> Tensor:
    return F.linear(x, conv.weight.flatten(1).to(x.dtype), conv.bias.to(x.dtype))


def _down(layer: Downsample, x: Tensor) -> Tensor:
    """Halve rows and columns; with time also all frames but the first."""
    conv, (top, bottom, left, right) = layer.resample["1"], DOWNSAMPLE_PADDING
    assert isinstance(conv, ConvWeights)
    x = F.pad(x, (left, right, top, bottom))
    y = _convolve(x, conv.weight.unsqueeze(2), conv.bias, (0, 0, 0), (1, 2, 2))
    if layer.time_conv is None or y.shape[2] == 1:
        return y
    time = layer.time_conv
    rest = _convolve(y, time.weight, time.bias, (0, 0, 0), time.stride)
    return torch.cat((y[:, :, :1], rest), dim=2)


def _up(layer: Upsample, x: Tensor) -> Tensor:
    """Double rows and columns; with time also all frames but the first, separately."""
    if layer.time_conv is not None and x.shape[2] > 1:
        rest = _causal(layer.time_conv, x[:, :, 1:].contiguous(memory_format=LAYOUT))
        halves = rest.unflatten(1, (2, -1)).movedim(1, 3).flatten(2, 3)
        x = torch.cat((x[:, :, :1], halves), dim=2)
    conv = layer.resample["1"]
    assert isinstance(conv, ConvWeights)
    taps, bias = fold_upsampling(conv.weight).unsqueeze(2), conv.bias.repeat(4)
    phases = _convolve(x, taps, bias, (0, 1, 1)).permute(0, 2, 3, 4, 1)
    rows, columns = x.shape[3:]
    even, odd = phases[:, :, :rows], phases[:, :, 1:]
    (a, b, _, _), (_, _, c, d) = (part.chunk(4, dim=-1) for part in (even, odd))
    pairs = [
        torch.stack((left[..., :columns, :], right[..., 1:, :]), dim=4)
        for left, right in ((a, b), (c, d))
    ]
    pixels = torch.stack(pairs, dim=3)  # [B, T, H, 2, W, 2, C]
    return pixels.flatten(4, 5).flatten(2, 3).permute(0, 4, 1, 2, 3)


def _causal(conv: CausalConv, x: Tensor) -> Tensor:
    """Convolve with zeros before the first frame."""
    before, (rows, _, columns, _) = conv.context, conv.padding
    if x.shape[2] == 1:  # its other taps see zeros
        return _convolve(x, conv.weight[:, :, -1:], conv.bias, (0, rows, columns))
    if x.shape[2] <= before:
        # With fewer frames than taps, oneDNN computes the gradient of a bf16 weight from memory
        # that nobody wrote: so the zeros are written explicitly.
        return _convolve(
            F.pad(x, (0, 0, 0, 0, before, 0)), conv.weight, conv.bias, (0, rows, columns)
        )
    padded = _convolve(x, conv.weight, conv.bias, (before, rows, columns))
    return padded[:, :, : x.shape[2]]


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    padding: Padding,
    stride: Stride = ONCE,
) -> Tensor:
    if x.device.type == "cpu" and x.dtype == torch.float32 and stride == ONCE:
        return convolve(x.contiguous(memory_format=LAYOUT), weight, bias, padding)
    return run(x, weight.to(x.dtype), bias.to(x.dtype), padding, stride)
