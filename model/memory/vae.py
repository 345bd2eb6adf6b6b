"""What the VAE holds while it codes: the steps of `vae` and `vae_layers` in bytes.

Every method mirrors the one of the same name and keeps the order in which tensors come and go: an
argument lives until its caller lets go of it, a local variable until it is bound anew. Names and
shapes are taken from a `VAE` on the meta device.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import cast

from torch import Tensor, nn

from ..vae import COLORS, SPATIAL, TEMPORAL, VAE
from ..vae_layers import (
    AttentionBlock,
    CausalConv,
    ConvWeights,
    Downsample,
    Head,
    ResidualBlock,
    Upsample,
)
from .ledger import FP32, Ledger, Machine, attention_workspace

_PACKED_CHANNELS = 16  # ops/causal_conv3d/cpu.py: what has fewer goes to the library
_PACKED_LANES, _PACKED_PANEL = 16, 32  # csrc/cpu/causal_conv3d.h
_FEW_CHANNELS = 16  # ops/causal_conv3d/library.py: times taps, folded into one image


@dataclass(frozen=True, kw_only=True)
class Video:
    """The shape of a tensor [1, channels, frames, rows, columns]."""

    channels: int
    frames: int
    rows: int
    columns: int

    @property
    def numbers(self) -> int:
        """Elements."""
        return self.channels * self.frames * self.rows * self.columns


def is_packed(weight: Tensor, machine: Machine) -> bool:
    """Whether the compiled convolution packs this weight."""
    return machine.is_cpu and min(weight.shape[:2]) >= _PACKED_CHANNELS


def packing_bytes(vae: VAE, machine: Machine) -> int:
    """Bytes by which packing changes the weights: the packed ones come, one number each is left."""
    return sum(_packing_bytes(weight, machine) for weight in _packed_weights(vae))


def _packed_weights(vae: VAE) -> Iterator[Tensor]:
    for layer in vae.modules():
        if isinstance(layer, CausalConv):
            yield layer.weight
        elif isinstance(layer, Downsample):
            yield cast(ConvWeights, layer.resample["1"]).weight
        elif isinstance(layer, Upsample):
            assert layer.folded_weight is not None
            yield layer.folded_weight


def _packing_bytes(weight: Tensor, machine: Machine) -> int:
    if not is_packed(weight, machine):
        return 0
    outputs, inputs, *taps = weight.shape
    lanes = -(-inputs // _PACKED_LANES) * _PACKED_LANES
    panels = -(-outputs // _PACKED_PANEL) * _PACKED_PANEL
    return machine.item * (prod(taps) * lanes * panels + 1 - weight.numel())


class VaeLedger:
    """A stream of pieces through encoder or decoder.

    Attributes:
        ledger: Takes and frees.
        stored: Name of a convolution -> its history, as `StreamCache.frames`.
        pieces: Pieces taken so far.
    """

    def __init__(self, vae: VAE, machine: Machine, ledger: Ledger, *, ranks: int = 1) -> None:
        """A new stream.

        Args:
            vae: On the meta device, with ``reuse``.
            machine: Where it runs.
            ledger: Where bytes are counted.
            ranks: Each has so many rows of the latent. Assumed: inputs of convolutions are copied
                next to a row of each neighbour; the attention gathers its keys and values.
        """
        self.vae, self.machine, self.ledger, self.ranks = vae, machine, ledger, ranks
        self.stored: dict[str, Video] = {}
        self.pieces = 0

    def size(self, video: Video) -> int:
        """Bytes of a video in the model's dtype."""
        return video.numbers * self.machine.item

    @property
    def state(self) -> int:
        """Bytes of the stream's histories."""
        return sum(self.size(video) for video in self.stored.values())

    def drop(self) -> None:
        """Let go of the stream."""
        self.ledger.free(self.state)
        self.stored.clear()
        self.pieces = 0

    # Pieces -------------------------------------------------------------------------------

    def encode_step(self, height: int, width: int) -> None:
        """`VAE.encode_step` of the next piece."""
        frames = TEMPORAL if self.pieces else 1
        piece = Video(channels=COLORS, frames=frames, rows=height, columns=width)
        entered = self.ledger.take(self.size(piece))
        encoder = self.vae.encoder
        x = self.conv(encoder.conv1, piece)
        for layer in encoder.downsamples:
            x = self._replace(x, self.layer(layer, x))
        middle = self.middle(encoder.middle, x)
        moments = self.head(encoder.head, middle)
        self.ledger.free(self.size(middle), self.size(moments), self.size(x), entered)
        self.pieces += 1

    def decode_step(self, rows: int, columns: int) -> int:
        """`VAE.decode_step` of the next latent; returns the bytes of its frames, still held."""
        x = self._features(rows, columns)
        y = self.layer(self.vae.decoder.upsamples[-1], x)
        frames = self.size(self.head(self.vae.decoder.head, y))
        self.ledger.free(self.size(x), self.size(y))
        self.pieces += 1
        return frames

    def warm(self, latents: int, rows: int, columns: int) -> None:
        """`VAE.warm`."""
        block = cast(ResidualBlock, self.vae.decoder.upsamples[-1])
        for index in range(latents):
            x = self._features(rows, columns)
            if index < latents - 1:
                self._remember(block.residual, x)
            else:
                y = self.residual(block, x, keep=min(2, x.frames))
                self._remember(self.vae.decoder.head, y)
                self.ledger.free(self.size(y))
            self.ledger.free(self.size(x))
            self.pieces += 1

    def _features(self, rows: int, columns: int) -> Video:
        decoder = self.vae.decoder
        z = Video(channels=self.vae.config.z_dim, frames=1, rows=rows, columns=columns)
        entered = self.ledger.take(self.size(z))
        x = self.conv(decoder.conv1, z)
        self.ledger.free(entered)
        x = self._replace(x, self.middle(decoder.middle, x))
        for layer in list(decoder.upsamples)[:-1]:
            x = self._replace(x, self.layer(layer, x))
        return x

    def _replace(self, old: Video, new: Video) -> Video:
        """``x = layer(x)``: the old tensor lives until then."""
        self.ledger.free(self.size(old))
        return new

    # Layers: the argument is held by the caller, the result is held ------------------------

    def layer(self, layer: nn.Module, x: Video) -> Video:
        """Any layer of the encoder's or decoder's stages."""
        if isinstance(layer, ResidualBlock):
            return self.residual(layer, x)
        if isinstance(layer, Downsample):
            return self.downsample(layer, x)
        assert isinstance(layer, Upsample)
        return self.upsample(layer, x)

    def middle(self, middle: nn.ModuleList, x: Video) -> Video:
        """Residual block, attention, residual block."""
        before, attention, after = middle
        first = self.residual(cast(ResidualBlock, before), x)
        second = self.attention(cast(AttentionBlock, attention), first)
        self.ledger.free(self.size(first))
        third = self.residual(cast(ResidualBlock, after), second)
        self.ledger.free(self.size(second))
        return third

    def residual(self, block: ResidualBlock, x: Video, *, keep: int | None = None) -> Video:
        """`ResidualBlock.forward`."""
        first, second = (cast(CausalConv, block.residual[name]) for name in ("2", "6"))
        normed = self.ledger.take(self.size(x))
        h = self.conv(first, x)
        self.ledger.free(normed)
        normed = self.ledger.take(self.size(h))
        y = self.conv(second, h, keep=keep)
        self.ledger.free(normed, self.size(h))
        short = 0
        if block.shortcut is not None:
            seen = x if keep is None else replace(x, frames=keep)
            short = self.size(self.conv(block.shortcut, seen))
        if block.fuse_bias:  # the sum is a tensor of its own
            self.ledger.free(self.ledger.take(self.size(y)))
        self.ledger.free(short)
        return y

    def head(self, head: Head, x: Video) -> Video:
        """`Head.forward`."""
        normed = self.ledger.take(self.size(x))
        y = self.conv(cast(CausalConv, head["2"]), x)
        self.ledger.free(normed)
        return y

    def attention(self, block: AttentionBlock, x: Video) -> Video:
        """`AttentionBlock.forward`; with several ranks keys and values are gathered."""
        take = self.ledger.take
        tokens = x.frames * x.rows * x.columns
        held = [
            take(FP32 * x.numbers),  # unit
            take(self.size(x)),  # normed
            take(3 * self.size(x)),  # qkv
        ]
        gathered = self.ledger.take_workspace(
            2 * self.size(x) * self.ranks if self.ranks > 1 else 0
        )
        held += [take(self.size(x)), take(FP32 * tokens)]  # out, lse
        keys = x.rows * x.columns * self.ranks
        self.ledger.use(attention_workspace(self.machine, x.frames, x.channels, keys))
        self.ledger.free_workspace(gathered)
        held.append(take(self.size(x)))  # projected
        take(self.size(x))
        self.ledger.free(*held)
        return x

    def downsample(self, layer: Downsample, x: Video) -> Video:
        """`Downsample.forward`."""
        conv = cast(ConvWeights, layer.resample["1"])
        y = replace(x, rows=x.rows // 2, columns=x.columns // 2)
        if is_packed(conv.weight, self.machine):
            self.ledger.take(self.size(y))
        else:
            border = replace(x, rows=x.rows + 1, columns=x.columns + 1)
            joined = self.ledger.take_workspace(self.size(border))
            self.ledger.take(self.size(y))
            self._library_weight(conv.weight.numel(), sliced=False)
            self.ledger.free_workspace(joined)
        if layer.time_conv is None:
            return y
        if self.pieces == 0:
            self._store(layer.time_conv, y)
            return y
        return self._replace(y, self.conv(layer.time_conv, y))

    def upsample(self, layer: Upsample, x: Video) -> Video:
        """`Upsample.forward`."""
        assert layer.folded_weight is not None
        outputs = layer.folded_weight.shape[0] // 4
        own = []  # y and x of the method
        if layer.time_conv is not None and self.pieces > 0:
            doubled = self.conv(layer.time_conv, x)
            own = [self.size(doubled), self.ledger.take(self.size(doubled))]
            x = replace(x, frames=2 * x.frames)
        phases = Video(
            channels=4 * outputs, frames=x.frames, rows=x.rows + 1, columns=x.columns + 1
        )
        own.append(self.ledger.take(self.size(phases)))
        if not is_packed(layer.folded_weight, self.machine):
            self._library_weight(layer.folded_weight.numel(), sliced=False)
        out = replace(phases, channels=outputs, rows=2 * x.rows, columns=2 * x.columns)
        self.ledger.take(self.size(out))
        self.ledger.free(*own)
        return out

    # Convolutions -------------------------------------------------------------------------

    def conv(self, layer: CausalConv, x: Video, *, keep: int | None = None) -> Video:
        """`CausalConv.forward`."""
        history = self.stored.get(layer.name)
        stored = 0 if history is None else history.frames
        zeros = layer.context - stored
        if keep is not None and keep + layer.context <= x.frames:
            x, stored, zeros = replace(x, frames=keep + layer.context), 0, 0
        out = self._convolve(layer, x, stored, zeros)
        if layer.context:
            self._store(layer, x)
        return out

    def _store(self, layer: CausalConv, x: Video) -> None:
        """`StreamCache.remember`: the new history is held, then the old one is let go."""
        old = self.stored.get(layer.name)
        count = min(layer.context, x.frames + (0 if old is None else old.frames))
        new = replace(x, frames=count)
        self.ledger.take(self.size(new))
        if old is not None:
            self.ledger.free(self.size(old))
        self.stored[layer.name] = new

    def _remember(self, layers: nn.ModuleDict, x: Video) -> None:
        conv = cast(CausalConv, layers["2"])
        seen = replace(x, frames=min(conv.context, x.frames))
        normed = self.ledger.take(self.size(seen))
        self._store(conv, seen)
        self.ledger.free(normed)

    def _convolve(self, layer: CausalConv, x: Video, stored: int, zeros: int) -> Video:
        """`causal_conv3d` by the compiled kernel or the library."""
        outputs, inputs, taps = layer.weight.shape[:3]
        stride, machine = layer.stride[0], self.machine
        count = (zeros + stored + x.frames - taps) // stride + 1
        y = replace(x, channels=outputs, frames=count)
        fold = machine.is_cpu and stride == 1 and taps > 1
        halo = self.ranks > 1 and layer.weight.shape[3] > 1
        if is_packed(layer.weight, machine):
            wider = replace(x, frames=stored + x.frames, rows=x.rows + 2)
            joined = self.ledger.take_workspace(self.size(wider) if halo else 0)
            self.ledger.take(self.size(y))
            self.ledger.free_workspace(joined)
            return y
        if fold and inputs * taps <= _FEW_CHANNELS:
            stacked = replace(x, channels=taps * inputs, frames=count)
            joined = self.ledger.take_workspace(self.size(stacked))
        elif fold and outputs * taps <= _FEW_CHANNELS and machine.item == FP32:
            # every tap's part of every frame, apart and joined
            parts = replace(y, channels=taps * outputs, frames=stored + x.frames)
            joined = self.ledger.take_workspace(2 * self.size(parts))
        elif stored or halo:
            copy = replace(x, frames=stored + x.frames, rows=x.rows + 2 * halo)
            joined = self.ledger.take_workspace(self.size(copy))
        else:
            joined = 0
        if machine.widens:  # frames, weight and result in fp32, then the result in both
            frames = replace(x, frames=stored + x.frames)
            numbers = frames.numbers + layer.weight.numel() + y.numbers
            self.ledger.use(FP32 * numbers)
            self.ledger.use(FP32 * y.numbers + self.size(y))
        self.ledger.take(self.size(y))
        self._library_weight(layer.weight.numel(), sliced=zeros > 0)
        windows = -(-zeros // stride)  # of outputs that see zeros, each convolved by itself
        if 0 < windows < count or windows > 1:
            self.ledger.use(self.size(y))  # the parts, while they are joined
        self.ledger.free_workspace(joined)
        return y

    def _library_weight(self, numbers: int, *, sliced: bool) -> None:
        """A library's own copy of a weight: oneDNN orders it anew, and a slice is packed first."""
        copies = int(self.machine.is_cpu) + int(sliced)
        self.ledger.use(copies * numbers * self.machine.item)


def latent_size(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the latent of a picture."""
    return height // SPATIAL, width // SPATIAL
