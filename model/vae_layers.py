"""Layers of the causal video VAE, stateless and unaware of ranks.

Norms, convolutions over video and attention are ops.

Shape suffixes: B batch, C channels, T frames, H rows, W columns. Parameter names are those of the
published checkpoint. A stream's state is in a `StreamCache` that is passed in, together with an
object that knows what is beyond the edges of the frames.

Every layer supports two schedules. ``reuse=False`` is the published one: planar memory, history and
zeros concatenated to the input of each convolution, upsampling before convolving. ``reuse=True``
gives the same result, up to floating-point rounding, with less work: channels-last memory, no zero
frames, and upsampling folded into the taps of the following convolution. ``fuse_bias``, an option
of the latter, is explained at `ResidualBlock`.
"""

from collections.abc import Mapping
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from livetalk_kernels.ops import Ops
from livetalk_kernels.runtime.halo import WHOLE, Whole
from livetalk_kernels.runtime.slices import Padding

from .linear import linear
from .weights.packed_weight import is_shape_only, pack_weight

DOWNSAMPLE_PADDING = (0, 1, 0, 1)  # top, bottom, left, right


class StreamCache:
    """State of a stream of pieces: the last input frames of each causal convolution.

    Entries are replaced, never modified in place, so a fork is free and unaffected by later pieces.

    Attributes:
        frames: Name of a convolution -> its last inputs [B, C, 1 | 2, H, W]; for a slice,
            including the halo.
        pieces: Number of pieces so far.
        halo: The picture of which the frames are a slice, if other ranks have the rest.
    """

    def __init__(
        self,
        frames: Mapping[str, Tensor] | None = None,
        pieces: int = 0,
        *,
        halo: Whole = WHOLE,
    ) -> None:
        """Create a cache, by default an empty one, before the first piece."""
        self.frames: dict[str, Tensor] = dict(frames or {})
        self.pieces, self.halo = pieces, halo

    def fork(self) -> Self:
        """Return an independent copy; tensors are shared until they are replaced."""
        return type(self)(self.frames, self.pieces, halo=self.halo)

    def remember(self, name: str, x_BCTHW: Tensor, count: int) -> None:
        """Store the last ``count`` of the stored frames and the new ones, or as many as there are.

        Copies are stored: no view keeps a large tensor alive or shares the caller's memory.
        """
        if x_BCTHW.shape[2] < count and name in self.frames:
            older = self.frames[name][:, :, x_BCTHW.shape[2] - count :]
            self.frames[name] = torch.cat([older, x_BCTHW], dim=2)
        else:
            self.frames[name] = x_BCTHW[:, :, -count:].clone()


class ConvWeights(nn.Module):
    """Weights of an image convolution: ``weight`` [outputs, inputs, k, k], ``bias`` [outputs]."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(outputs))


class CausalConv(nn.Module):
    """A convolution over video whose outputs depend on no later frame.

    Attributes:
        packed: The weight in the form that the op's backend wants, used instead of the weight's
            values; None if it has no such form.
        name: Key of this layer's entry in the cache: its path in the model, which sets it.
        late_bias: The bias, if the consumer of the result adds it; else None.
        context: Number of frames that it sees before the current one, or for temporal
            ``stride`` 2 before the first of a piece.
    """

    ops: Ops
    packed: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int, int],
        ops: Ops,
        *,
        reuse: bool,
        stride: int = 1,
        leave_bias: bool = False,
    ) -> None:
        """Create ``weight`` [outputs, inputs, *kernel]; ``stride`` is the temporal one."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, *kernel))
        self.bias = nn.Parameter(torch.empty(outputs))
        self.register_buffer("packed", None, persistent=False)
        self.ops, self.reuse, self.leave_bias = ops, reuse, leave_bias
        self.name = ""
        self.context = kernel[0] - stride
        self.stride = (stride, 1, 1)
        self.taps = kernel[1:]
        rows, columns = kernel[1] // 2, kernel[2] // 2
        self.padding = (rows, rows, columns, columns)

    @property
    def late_bias(self) -> Tensor | None:
        """The bias, if the consumer of the result adds it; else None."""
        return self.bias if self.leave_bias else None

    def prepare(self) -> None:
        """Convert the weights to the form that the schedule convolves with."""
        if self.reuse and not is_shape_only(self.weight):
            weight = self.weight.data.contiguous(memory_format=torch.channels_last_3d)
            self.weight.data, self.packed = pack_weight(self.ops, weight)

    def forward(
        self, x_BCTHW: Tensor, cache: StreamCache | None = None, *, keep: int | None = None
    ) -> Tensor:
        """Convolve a piece; missing history is zeros.

        Args:
            x_BCTHW: New frames.
            cache: The stream that they continue; not needed by a one-frame kernel.
            keep: Compute only the last ``keep`` output frames.

        Returns:
            Output frames [B, outputs, T or keep, H, W].
        """
        history, zero_frames = None, 0
        if self.context:
            assert cache is not None, f"{self.name} needs a stream"
            history = cache.frames.get(self.name)
            zero_frames = self.context - (0 if history is None else history.shape[2])
        if keep is not None and keep + self.context <= x_BCTHW.shape[2]:
            x_BCTHW = x_BCTHW[:, :, -(keep + self.context) :]
            history, zero_frames = None, 0

        def run(x: Tensor, history: Tensor | None, padding: Padding) -> Tensor:
            if self.reuse:
                bias = None if self.leave_bias else self.bias
                return self.ops.causal_conv3d(
                    x, history, self.weight, bias, packed=self.packed,
                    zero_frames=zero_frames, stride=self.stride, padding=padding,
                )  # fmt: skip
            x = x if history is None else torch.cat([history, x], dim=2)
            top, bottom, left, right = padding
            x = F.pad(x, (left, right, top, bottom, zero_frames, 0))
            return self.ops.causal_conv3d(x, None, self.weight, self.bias, stride=self.stride)

        if not any(self.padding):  # pixels are independent
            y, seen = run(x_BCTHW, history, self.padding), x_BCTHW
        else:
            assert cache is not None, f"{self.name} needs a stream"
            y, seen = cache.halo.convolve(
                run, x_BCTHW, history, taps=self.taps, stride=(1, 1), padding=self.padding,
                remember=self.context,
            )  # fmt: skip
        if self.context:
            assert cache is not None
            cache.remember(self.name, seen, self.context)
        return y if keep is None else y[:, :, -keep:]


class NormSiLU(nn.Module):
    """RMS norm over channels and SiLU."""

    ops: Ops

    def __init__(self, channels: int, ops: Ops) -> None:
        """Create ``gamma`` [channels, 1, 1, 1]."""
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, 1, 1, 1))
        self.ops = ops

    def forward(self, x_BCTHW: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return a fresh tensor of x's shape; ``bias`` [channels] is added to x first."""
        return self.ops.rms_norm_silu(x_BCTHW, self.gamma.flatten(), bias)


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice, in parallel with a shortcut.

    PyTorch adds cuDNN's convolution bias in a separate pass. With ``fuse_bias`` the convolutions
    omit theirs: the first one's is added by the following norm, the second one's and the
    shortcut's, as one vector, by the pass that adds the residual. By arithmetic, not measured: GPU
    memory traffic of a block without a shortcut for 4 new frames after 2 remembered ones, in units
    of its 4 frames (14B at 768x448: 264 MB in bf16 at full size):

        pass                              cuDNN's way         with ``fuse_bias``
        norm and SiLU, twice              2 x (1 + 1)         2 x (1 + 1)
        join the history, twice           2 x (1.5 + 1.5)     2 x (1.5 + 1.5)
        convolve, twice                   2 x (1.5 + 1)       2 x (1.5 + 1)
        add the bias, twice               2 x (1 + 1)         none
        remember the last frames, twice   2 x (0.5 + 0.5)     2 x (0.5 + 0.5)
        add the residual                  2 + 1               2 + 1
        together                          11 passes, 24       9 passes, 20

    A shortcut's bias saves another pass of 2.

    Attributes:
        bias: Bias that the residual's pass adds, fp32 [outputs]; None without ``fuse_bias``.
    """

    ops: Ops
    bias: Tensor | None

    def __init__(
        self, inputs: int, outputs: int, ops: Ops, *, reuse: bool, fuse_bias: bool = False
    ) -> None:
        """Build the layers; ``shortcut`` exists if the width changes."""
        super().__init__()
        kernel = (3, 3, 3)
        assert reuse or not fuse_bias, "the published schedule adds each bias where it stands"
        self.ops, self.fuse_bias = ops, fuse_bias
        how = {"reuse": reuse, "leave_bias": fuse_bias}
        self.residual = nn.ModuleDict(
            {
                "0": NormSiLU(inputs, ops),
                "2": CausalConv(inputs, outputs, kernel, ops, **how),
                "3": NormSiLU(outputs, ops),
                "6": CausalConv(outputs, outputs, kernel, ops, **how),
            }
        )
        self.shortcut = (
            CausalConv(inputs, outputs, (1, 1, 1), ops, **how) if inputs != outputs else None
        )
        self.register_buffer("bias", None, persistent=False)

    def prepare(self) -> None:
        """Combine the biases that the residual's pass adds."""
        if self.fuse_bias:
            self.bias = self._joined_bias()

    def _joined_bias(self) -> Tensor:
        last = self.residual["6"], self.shortcut
        biases = [conv.bias.float() for conv in last if isinstance(conv, CausalConv)]
        return torch.stack(biases).sum(0)

    def forward(self, x_BCTHW: Tensor, cache: StreamCache, *, keep: int | None = None) -> Tensor:
        """Return frames of the same number and size, or the last ``keep`` of them."""
        branch = self.residual
        h = branch["2"](branch["0"](x_BCTHW), cache)
        h = branch["6"](branch["3"](h, branch["2"].late_bias), cache, keep=keep)
        x = x_BCTHW if keep is None else x_BCTHW[:, :, -keep:]
        x = x if self.shortcut is None else self.shortcut(x)
        if not self.fuse_bias:
            return h.add_(x)
        bias = self._joined_bias() if branch["6"].bias.requires_grad else self.bias
        assert bias is not None, "prepare() comes after loading"
        return self.ops.add_residual(h, x, bias)

    def remember(self, x_BCTHW: Tensor, cache: StreamCache) -> None:
        """Store what this block's first convolution will need of these frames."""
        _remember(self.residual, x_BCTHW, cache)


def _remember(layers: nn.ModuleDict, x_BCTHW: Tensor, cache: StreamCache) -> None:
    """Store what convolution ``2`` after norm ``0`` will need of these frames."""
    conv = layers["2"]
    assert isinstance(conv, CausalConv)
    seen = cache.halo.join(layers["0"](x_BCTHW[:, :, -conv.context :]), conv.padding)
    cache.remember(conv.name, seen, conv.context)


class _ChannelGamma(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels, 1, 1))


class AttentionBlock(nn.Module):
    """Single-head attention among all pixels of each frame, with a residual."""

    ops: Ops

    def __init__(self, channels: int, ops: Ops) -> None:
        """Build 1 x 1 convolutions ``to_qkv`` and ``proj``."""
        super().__init__()
        self.ops = ops
        self.norm = _ChannelGamma(channels)
        self.to_qkv = ConvWeights(channels, 3 * channels, 1)
        self.proj = ConvWeights(channels, channels, 1)

    def forward(self, x_BCTHW: Tensor, cache: StreamCache) -> Tensor:
        """Return frames of the same number and size."""
        batch, channels, frames, height, width = x_BCTHW.shape
        x_NLC = x_BCTHW.permute(0, 2, 3, 4, 1).reshape(batch * frames, height * width, channels)
        unit_NLC = F.normalize(x_NLC.float(), dim=-1)
        h_NLC = (unit_NLC * channels**0.5 * self.norm.gamma.float().flatten()).to(x_NLC.dtype)
        qkv = linear(h_NLC, self.to_qkv.weight.flatten(1), self.to_qkv.bias)
        # One head as wide as the image: [N, L, 1, C] each. Keys are the pixels of all slices.
        q, kv_NLC = qkv[..., :channels].unsqueeze(2), qkv[..., channels:]
        kv_NLC = cache.halo.gather(kv_NLC.unflatten(1, (height, width)), (1, 2)).flatten(1, 2)
        k, v = kv_NLC.unsqueeze(2).chunk(2, dim=-1)
        out, _ = self.ops.chunk_attention(q, k, v)
        y_NLC = x_NLC + linear(out.squeeze(2), self.proj.weight.flatten(1), self.proj.bias)
        y_BTHWC = y_NLC.view(batch, frames, height, width, channels)
        y_BCTHW = y_BTHWC.permute(0, 4, 1, 2, 3)
        return y_BCTHW.contiguous() if x_BCTHW.is_contiguous() else y_BCTHW  # x's memory format


class Downsample(nn.Module):
    """Halves rows and columns; with ``time`` also frames, except the first of a stream."""

    ops: Ops
    packed: Tensor | None

    def __init__(self, channels: int, ops: Ops, *, time: bool, reuse: bool) -> None:
        """Build ``resample.1``, a strided 3 x 3 convolution, and ``time_conv`` over 3 frames."""
        super().__init__()
        self.resample = nn.ModuleDict({"1": ConvWeights(channels, channels, 3)})
        self.register_buffer("packed", None, persistent=False)
        self.ops, self.reuse = ops, reuse
        self.time_conv = (
            CausalConv(channels, channels, (3, 1, 1), ops, reuse=reuse, stride=2) if time else None
        )

    def prepare(self) -> None:
        """Convert the weights to the form that the schedule convolves with."""
        weight = _weights(self.resample).weight
        if self.reuse and not is_shape_only(weight):
            taps = weight.data.contiguous(memory_format=torch.channels_last).unsqueeze(2)
            taps, self.packed = pack_weight(self.ops, taps)
            weight.data = taps.squeeze(2)

    def forward(self, x_BCTHW: Tensor, cache: StreamCache) -> Tensor:
        """Return [B, C, 1, H/2, W/2] for the first piece, then [B, C, T or T/2, H/2, W/2]."""
        conv = _weights(self.resample)

        def run(x: Tensor, _: Tensor | None, padding: Padding) -> Tensor:
            weight = conv.weight.unsqueeze(2)
            return self.ops.causal_conv3d(
                x, None, weight, conv.bias,
                packed=self.packed, stride=(1, 2, 2), padding=padding,
            )  # fmt: skip

        y, _ = cache.halo.convolve(
            run, x_BCTHW, None, taps=(3, 3), stride=(2, 2), padding=DOWNSAMPLE_PADDING
        )
        if self.time_conv is None:
            return y
        if cache.pieces == 0:
            cache.remember(self.time_conv.name, y, self.time_conv.context)
            return y
        return self.time_conv(y, cache)


class Upsample(nn.Module):
    """Doubles rows and columns and halves channels; with ``time`` doubles frames too.

    The first latent of a stream keeps its single frame and is not remembered: the second is
    upsampled in time as if nothing had preceded it, as published.
    """

    ops: Ops
    folded_weight: Tensor | None
    folded_bias: Tensor | None
    packed: Tensor | None

    def __init__(self, channels: int, ops: Ops, *, time: bool, reuse: bool) -> None:
        """Build ``resample.1``, a 3 x 3 convolution, and ``time_conv`` over 3 frames."""
        super().__init__()
        self.resample = nn.ModuleDict({"1": ConvWeights(channels, channels // 2, 3)})
        self.ops, self.reuse = ops, reuse
        self.time_conv = (
            CausalConv(channels, 2 * channels, (3, 1, 1), ops, reuse=reuse) if time else None
        )
        self.register_buffer("folded_weight", None, persistent=False)
        self.register_buffer("folded_bias", None, persistent=False)
        self.register_buffer("packed", None, persistent=False)

    def prepare(self) -> None:
        """Fold the upsampling into the taps."""
        if self.reuse:
            taps, bias = self._fold()
            self.folded_weight, self.packed = pack_weight(self.ops, taps.detach())
            self.folded_bias = bias.detach()

    def _fold(self) -> tuple[Tensor, Tensor]:
        conv = _weights(self.resample)
        return fold_upsampling(conv.weight).unsqueeze(2), conv.bias.repeat(4)

    def _folded(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return taps, bias and packed taps on the small image; refolded each time in training."""
        if _weights(self.resample).weight.requires_grad:
            return *self._fold(), None
        weight, bias = self.folded_weight, self.folded_bias
        assert weight is not None and bias is not None, "prepare() comes after loading"
        return weight, bias, self.packed

    def forward(self, x_BCTHW: Tensor, cache: StreamCache) -> Tensor:
        """Return [B, C/2, T, 2H, 2W], with ``time`` 2T frames of all pieces but the first."""
        x = x_BCTHW
        if self.time_conv is not None and cache.pieces > 0:
            y = self.time_conv(x, cache)
            x = interleave_frames(y) if self.reuse else torch.stack(y.chunk(2, 1), 3).flatten(2, 3)
        if self.reuse:
            weight, bias, packed = self._folded()
        else:
            conv = _weights(self.resample)
            weight, bias, packed = conv.weight.unsqueeze(2), conv.bias, None
            images = x.transpose(1, 2).flatten(0, 1).float()
            images = F.interpolate(images, scale_factor=2.0, mode="nearest-exact").to(x.dtype)
            x = images.unflatten(0, (x.shape[0], -1)).transpose(1, 2)

        def run(x: Tensor, _: Tensor | None, padding: Padding) -> Tensor:
            return self.ops.causal_conv3d(x, None, weight, bias, packed=packed, padding=padding)

        taps = weight.shape[3], weight.shape[4]
        y, _ = cache.halo.convolve(run, x, None, taps=taps, stride=(1, 1), padding=(1, 1, 1, 1))
        return interleave_pixels(y) if self.reuse else y


class Head(nn.ModuleDict):
    """Norm, SiLU and the last convolution."""

    def __init__(self, inputs: int, outputs: int, ops: Ops, *, reuse: bool) -> None:
        """Create ``0.gamma``, ``2.weight`` and ``2.bias``."""
        conv = CausalConv(inputs, outputs, (3, 3, 3), ops, reuse=reuse)
        super().__init__({"0": NormSiLU(inputs, ops), "2": conv})

    def forward(self, x_BCTHW: Tensor, cache: StreamCache) -> Tensor:
        """Return [B, outputs, T, H, W]."""
        return self["2"](self["0"](x_BCTHW), cache)

    def remember(self, x_BCTHW: Tensor, cache: StreamCache) -> None:
        """Store what later frames will need of these."""
        _remember(self, x_BCTHW, cache)


def _weights(resample: nn.ModuleDict) -> ConvWeights:
    conv = resample["1"]
    assert isinstance(conv, ConvWeights)
    return conv


def fold_upsampling(weight_OIkk: Tensor) -> Tensor:
    """Fold a nearest x2 upsampling into the taps of the 3 x 3 convolution after it.

    Along one axis output row 2r sees the upsampled rows 2r - 1, 2r, 2r + 1, which are the rows
    r - 1, r, r: taps (a, b + c). Row 2r + 1 sees r, r, r + 1: taps (a + b, c). Both axes give four
    kernels of 2 x 2, one per phase of the output.

    Args:
        weight_OIkk: Taps [O, I, 3, 3].

    Returns:
        Taps [4 * O, I, 2, 2] of weight's dtype, phases (row, column) outermost, channels-last.
    """
    taps = weight_OIkk.float()
    for axis in (3, 2):
        first, middle, last = taps.unbind(axis)
        even = torch.stack((first, middle + last), axis)
        odd = torch.stack((first + middle, last), axis)
        taps = torch.cat((even, odd))  # rows come last, so they are the outer phase
    return taps.to(weight_OIkk.dtype).contiguous(memory_format=torch.channels_last)


def interleave_pixels(phases_BCTHW: Tensor) -> Tensor:
    """Interleave the four phases of `fold_upsampling` into their pixels.

    Args:
        phases_BCTHW: [B, 4 * C, T, H + 1, W + 1], the convolution of an image with a border of
            one; even output rows start at its first row, odd ones at its second.

    Returns:
        [B, C, T, 2H, 2W], channels_last_3d.
    """
    batch, channels, frames, rows, columns = phases_BCTHW.shape
    channels, rows, columns = channels // 4, rows - 1, columns - 1
    phases = phases_BCTHW.permute(0, 2, 3, 4, 1).unflatten(4, (2, 2, channels))
    out = phases.new_empty(batch, frames, rows, 2, columns, 2, channels)
    for row in range(2):
        for column in range(2):
            source = phases[:, :, row : row + rows, column : column + columns, row, column]
            out[:, :, :, row, :, column] = source
    return out.flatten(4, 5).flatten(2, 3).permute(0, 4, 1, 2, 3)


def interleave_frames(halves_BCTHW: Tensor) -> Tensor:
    """Map [B, 2C, T, H, W] to [B, C, 2T, H, W], channels_last_3d: even frames, then odd ones."""
    halves = halves_BCTHW.permute(0, 2, 3, 4, 1).unflatten(4, (2, -1))
    frames = halves.permute(0, 1, 4, 2, 3, 5).flatten(1, 2)
    return frames.permute(0, 4, 1, 2, 3)
