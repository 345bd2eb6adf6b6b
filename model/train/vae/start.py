"""Initialises the VAE as a principal component code, which random weights take long to reach.

A VAE with random weights first learns to reproduce a grey picture, then coarse colours: its norms
discard how bright a pixel is, and everything in a picture must find its way through narrow layers.
The encoder's path around the residual blocks can hold the best linear code of 8 x 8 pixels, so it
is computed from pictures and written there, halving by halving; the decoder's path learns its half
within seconds. Residual blocks start as zero.

A norm preserves magnitudes only if something in each pixel has constant magnitude: channels that
hold no picture are constants. SiLU is undone by pairs, ``silu(u) - silu(-u) = u``.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ...vae import COLORS, VAE
from ...vae_layers import (
    AttentionBlock,
    CausalConv,
    ConvWeights,
    Downsample,
    NormSiLU,
    ResidualBlock,
    Upsample,
)

_HALVED = 0.5  # factor of a component, so that a mean of four keeps its magnitude
_CONSTANT, _LATE, _LAST = (
    1.0,
    6.0,
    3.0,
)  # the constants: of pixels, of latents, of the decoder's end
_SPARE = 2  # channels of constants, per ``dim``, where two pixels are one
_LEAST = 1e-4  # minimum spread of a component
_PICTURE = 0.4  # mean square of a pixel's colour
_FAINT = 0.1  # norm weight of constants, so that SiLU does not amplify them
_STEADY = 4  # minimum spreads between the mean of a constant and 0
_FEW = 16  # pictures used to weight channels
_RANDOM = 0.2  # fraction kept of random weights where constants are


@torch.no_grad()
def start_from_pictures(vae: VAE, pictures_NCHW: Tensor) -> None:
    """Write the code into a VAE with random weights.

    Args:
        vae: Modified in place; at least 12 channels wide.
        pictures_NCHW: Pixels in -1..1, sides multiples of 8; a few hundred.
    """
    dim, codes = vae.config.dim, vae.config.z_dim
    assert 4 * dim > 2 * codes, "no room for both signs and a constant"
    encoder, decoder = vae.encoder, vae.decoder
    _still_blocks(vae.modules())
    heads = encoder.head["2"], decoder.head["2"]
    for conv in (encoder.conv1, vae.conv1, vae.conv2, decoder.conv1, *heads):
        _clear(conv)
    _pass(encoder.conv1, COLORS)
    encoder.conv1.bias[COLORS:] = _CONSTANT * _signs(dim - COLORS)
    _code(encoder.downsamples, pictures_NCHW, (dim - _SPARE, 2 * dim - 2 * _SPARE, codes))
    spare = 4 * dim - 2 * codes
    _keep_sizes(encoder.head["0"], 2 * codes, 1.0, _LATE, spare)
    _join_signs(encoder.head["2"], codes)
    _pass(vae.conv1, codes)
    _pass(vae.conv2, codes)
    _split_signs(decoder.conv1, codes, _LATE / 2)
    ups = [layer for layer in decoder.upsamples if isinstance(layer, Upsample)]
    last = _image_conv(ups[-1])
    last.weight[COLORS : 2 * COLORS] = -last.weight[:COLORS]
    last.weight[2 * COLORS :] *= _RANDOM
    last.bias.zero_()
    last.bias[2 * COLORS :] = _LAST
    _keep_sizes(decoder.head["0"], 2 * COLORS, _PICTURE, _LAST, dim - 2 * COLORS)
    _join_signs(decoder.head["2"], COLORS)
    vae.prepare()
    _weigh_channels(vae, pictures_NCHW[:_FEW, :, None])


def _still_blocks(modules: Iterable[nn.Module]) -> None:
    """Make residual blocks and attention add nothing; average and repeat frames."""
    for module in modules:
        if isinstance(module, ResidualBlock):
            _clear(module.residual["6"])
            if module.shortcut is not None:
                _clear(module.shortcut)
                _pass(module.shortcut, module.shortcut.weight.shape[1])
        elif isinstance(module, AttentionBlock):
            _clear(module.proj)
        elif isinstance(module, Downsample | Upsample) and module.time_conv is not None:
            conv = module.time_conv
            _clear(conv)
            width = conv.weight.shape[1]
            unit = torch.eye(width)
            if isinstance(module, Downsample):
                conv.weight[:, :, 1, 0, 0] = conv.weight[:, :, 2, 0, 0] = unit / 2
            else:
                conv.weight[:width, :, 2, 0, 0] = conv.weight[width:, :, 2, 0, 0] = unit


def _weigh_channels(vae: VAE, video_BCTHW: Tensor) -> None:
    """Scale each residual block's inputs to a spread of one, constants hardly."""

    def weigh(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(block, ResidualBlock)
        norm = block.residual["0"]
        assert isinstance(norm, NormSiLU)
        unit_BCTHW = inputs[0] * inputs[0].square().mean(1, keepdim=True).clamp_min(_LEAST).rsqrt()
        spread_C, mean_C = torch.std_mean(unit_BCTHW, dim=(0, 2, 3, 4))
        weights_C = 1 / spread_C.clamp_min(_FAINT)
        weights_C[spread_C < _FAINT**2] = 1.0  # nothing so far
        weights_C[mean_C.abs() > _STEADY * spread_C + _FAINT] = _FAINT
        norm.gamma.copy_(weights_C.view_as(norm.gamma))

    blocks = [module for module in vae.modules() if isinstance(module, ResidualBlock)]
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(_hooked(block, weigh))
        vae.decode(vae.encode(video_BCTHW), clamp=False)


@contextmanager
def _hooked(block: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handle = block.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _code(layers: nn.ModuleList, pictures_NCHW: Tensor, kept: tuple[int, int, int]) -> None:
    """Make each halving keep the most informative components; the last have unit variance."""
    downs = [layer for layer in layers if isinstance(layer, Downsample)]
    for layer, count in zip(downs, kept, strict=True):
        last, conv = layer is downs[-1], _image_conv(layer)
        blocks_NHWC = _blocks(pictures_NCHW)
        used = pictures_NCHW.shape[1]
        mean_C, axes_CK, spread_K = components(blocks_NHWC.flatten(0, 2), count)
        axes_CK = axes_CK / spread_K if last else axes_CK * _HALVED
        _clear(conv)
        conv.weight[:count, :used, :2, :2] = axes_CK.T.reshape(count, used, 2, 2)
        conv.bias[:count] = -(mean_C @ axes_CK)
        first = count
        if last:
            first = 2 * count
            conv.weight[count:first] = -conv.weight[:count]
            conv.bias[count:first] = -conv.bias[:count]
        left = len(conv.bias) - first
        conv.bias[first:] = _LATE if last else _CONSTANT * _signs(left)
        pictures_NCHW = ((blocks_NHWC - mean_C) @ axes_CK).permute(0, 3, 1, 2)


def components(rows_NC: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Compute principal components.

    Args:
        rows_NC: The data.
        count: Number of components, K.

    Returns:
        Mean [C], axes [C, K], most informative first, and the spread along each [K].
    """
    mean_C = rows_NC.mean(0)
    centred = rows_NC - mean_C
    squares, axes_CC = torch.linalg.eigh(centred.T @ centred / len(rows_NC))
    return mean_C, axes_CC.flip(1)[:, :count], squares.flip(0)[:count].sqrt().clamp_min(_LEAST)


def _blocks(images_NCHW: Tensor) -> Tensor:
    """Reshape [N, C, H, W] to [N, H/2, W/2, 4 C], blocks of 2 x 2 pixels."""
    return images_NCHW.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3)


def _keep_sizes(norm: nn.Module, count: int, square: float, constant: float, spare: int) -> None:
    """Make a norm preserve its input where channels are pictures."""
    assert isinstance(norm, NormSiLU)
    mean_square = (count * square + spare * constant**2) / (count + spare)
    norm.gamma[:count] = mean_square**0.5
    norm.gamma[count:] = _FAINT


def _join_signs(conv: nn.Module, count: int) -> None:
    assert isinstance(conv, CausalConv)
    unit, middle = torch.eye(count), _middle_tap(conv)
    conv.weight[:count, :count, *middle] = unit
    conv.weight[:count, count : 2 * count, *middle] = -unit


def _split_signs(conv: CausalConv, count: int, constant: float) -> None:
    unit, middle = torch.eye(count), _middle_tap(conv)
    conv.weight[:count, :, *middle] = unit
    conv.weight[count : 2 * count, :, *middle] = -unit
    conv.bias[2 * count :] = constant


def _pass(conv: CausalConv, count: int) -> None:
    conv.weight[:count, :count, *_middle_tap(conv)] = torch.eye(count)


def _middle_tap(conv: CausalConv) -> tuple[int, int, int]:
    """Return the tap at the same pixel of the same frame."""
    _, _, frames, rows, columns = conv.weight.shape
    return frames - 1, rows // 2, columns // 2


def _image_conv(layer: Downsample | Upsample) -> ConvWeights:
    conv = layer.resample["1"]
    assert isinstance(conv, ConvWeights)
    return conv


def _clear(conv: nn.Module) -> None:
    assert isinstance(conv, CausalConv | ConvWeights)
    conv.weight.zero_()
    conv.bias.zero_()


def _signs(count: int) -> Tensor:
    return torch.arange(count) % 2 * 2.0 - 1
