"""What the ranks of a sliced VAE send each other, as formulas.

A convolution of more than one tap in space sends the border of its input, once
(`Slices.halo_pixels`); the attention sends keys and values to all others. Nothing else is sent.
Channels are read off the layers; nothing is computed.
"""

from dataclasses import dataclass

from torch import nn

from livetalk_kernels.runtime.slices import Padding, Slices

from .vae import SPATIAL, TEMPORAL, VAE
from .vae_layers import (
    DOWNSAMPLE_PADDING,
    AttentionBlock,
    CausalConv,
    Downsample,
    Head,
    ResidualBlock,
    Upsample,
)


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes that one rank sends.

    Attributes:
        halo: To its neighbours.
        gather: Keys and values, to all others.
    """

    halo: int
    gather: int


def encode_traffic(vae: VAE, slices: Slices, rank: int, *, first: bool, itemsize: int) -> Traffic:
    """Sent in `VAE.encode_step`.

    Args:
        vae: The model with ``reuse``; one on the meta device will do.
        slices: Who has what.
        rank: The sender.
        first: Of the first piece of a stream.
        itemsize: Bytes of a number.
    """
    walk = _Walk(slices, rank, first=first, frames=1 if first else TEMPORAL, factor=SPATIAL)
    encoder = vae.encoder
    walk.through(encoder.conv1, *encoder.downsamples, *encoder.middle, encoder.head)
    return walk.sent(itemsize)


def decode_traffic(vae: VAE, slices: Slices, rank: int, *, first: bool, itemsize: int) -> Traffic:
    """Sent in `VAE.decode_step`; arguments as in `encode_traffic`."""
    walk = _Walk(slices, rank, first=first, frames=1, factor=1)
    decoder = vae.decoder
    walk.through(decoder.conv1, *decoder.middle, *decoder.upsamples, decoder.head)
    return walk.sent(itemsize)


def warm_traffic(
    vae: VAE, slices: Slices, rank: int, *, first: bool, last: bool, itemsize: int
) -> Traffic:
    """Sent for one latent of `VAE.warm`.

    Args:
        vae: As in `encode_traffic`.
        slices: As in `encode_traffic`.
        rank: As in `encode_traffic`.
        first: Of the first latent of a stream.
        last: Of the last latent of a call, which makes what the head remembers.
        itemsize: As in `encode_traffic`.
    """
    walk = _Walk(slices, rank, first=first, frames=1, factor=1)
    *features, block = vae.decoder.upsamples
    walk.through(vae.decoder.conv1, *vae.decoder.middle, *features)
    conv1, conv2 = _convolutions(block)
    head = vae.decoder.head["2"]
    assert isinstance(head, CausalConv)
    seen = min(conv1.context, walk.frames)
    if last:
        walk.convolution(conv1.weight)
        walk.convolution(conv2.weight, frames=min(walk.frames, conv2.context + seen))
        walk.convolution(head.weight, frames=seen)
    else:
        walk.convolution(conv1.weight, frames=seen)
    return walk.sent(itemsize)


class _Walk:
    """Follows a piece through the layers and adds up what is sent."""

    def __init__(self, slices: Slices, rank: int, *, first: bool, frames: int, factor: int) -> None:
        """``factor``: of the piece's rows and columns to the latent's."""
        self.slices, self.rank, self.first = slices, rank, first
        self.frames, self.factor = frames, factor
        self._halo = self._gather = 0

    def through(self, *layers: nn.Module) -> None:
        """The layers, one after another."""
        for layer in layers:
            match layer:
                case CausalConv():
                    self.convolution(layer.weight)
                case ResidualBlock():
                    self.through(*_convolutions(layer))
                case Head():
                    self.through(layer["2"])
                case AttentionBlock():
                    width = 2 * layer.proj.weight.shape[1]  # of a key and a value
                    pixels = self.slices.box(self.rank, self.factor).pixels
                    others = self.slices.grid.world - 1
                    self._gather += others * width * self.frames * pixels
                case Downsample():
                    self.convolution(_resampling(layer), padding=DOWNSAMPLE_PADDING)
                    self.factor //= 2
                    if layer.time_conv is not None and not self.first:
                        self.frames //= 2
                case Upsample():
                    if layer.time_conv is not None and not self.first:
                        self.frames *= 2
                    self.convolution(_resampling(layer))
                    self.factor *= 2
                case _:
                    raise AssertionError(type(layer))

    def convolution(
        self, weight: nn.Parameter, *, frames: int | None = None, padding: Padding = (1, 1, 1, 1)
    ) -> None:
        """The border of a convolution's input, of all or so many frames."""
        pixels = self.slices.halo_pixels(self.rank, padding, self.factor)
        self._halo += weight.shape[1] * (self.frames if frames is None else frames) * pixels

    def sent(self, itemsize: int) -> Traffic:
        """All of it, in bytes."""
        return Traffic(halo=self._halo * itemsize, gather=self._gather * itemsize)


def _convolutions(block: nn.Module) -> tuple[CausalConv, CausalConv]:
    assert isinstance(block, ResidualBlock)
    first, second = block.residual["2"], block.residual["6"]
    assert isinstance(first, CausalConv) and isinstance(second, CausalConv)
    return first, second


def _resampling(layer: Downsample | Upsample) -> nn.Parameter:
    weight = layer.resample["1"].weight
    assert isinstance(weight, nn.Parameter)
    return weight
