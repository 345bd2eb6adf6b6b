"""The causal video VAE of Wan2.1: maps 8 x 8 pixels and 4 frames to one latent of 16 channels.

A video is coded in pieces of 1, 4, 4, ... frames, one latent each. A stream of pieces continues
through a cache that the caller holds; the modules are stateless. Frames and latents may be slices
of a larger picture, if the stream's cache knows who has the others. Source: Wan et al. 2025
(arXiv 2503.20314); arithmetic and key names are those of the published checkpoint.
"""

import itertools

import torch
from torch import Tensor, nn

from livetalk_kernels.errors import UserError
from livetalk_kernels.ops import Ops
from livetalk_kernels.runtime.halo import WHOLE, Whole

from .config import VAEConfig
from .vae_layers import (
    AttentionBlock,
    CausalConv,
    Downsample,
    Head,
    ResidualBlock,
    StreamCache,
    Upsample,
)
from .weights.packed_weight import is_shape_only

SPATIAL = 8  # pixels per latent, rows and columns
TEMPORAL = 4  # frames per latent, except the first
COLORS = 3
KERNEL = (3, 3, 3)


class EncoderCache(StreamCache):
    """State of a stream of frames being encoded."""


class DecoderCache(StreamCache):
    """State of a stream of latents being decoded."""


class Encoder(nn.Module):
    """Maps frames to features of 1/8 of the size."""

    def __init__(self, config: VAEConfig, ops: Ops, *, reuse: bool, fuse_bias: bool) -> None:
        """Build four stages of widths 1, 2, 4 and 4 x ``dim``; the last one keeps its size."""
        super().__init__()
        dims = [config.dim * factor for factor in (1, 1, 2, 4, 4)]
        how = {"reuse": reuse, "fuse_bias": fuse_bias}
        self.conv1 = CausalConv(COLORS, dims[0], KERNEL, ops, reuse=reuse)
        stages: list[nn.Module] = []
        for stage, (inputs, outputs) in enumerate(itertools.pairwise(dims)):
            stages.append(ResidualBlock(inputs, outputs, ops, **how))
            stages.append(ResidualBlock(outputs, outputs, ops, **how))
            if stage < 3:
                stages.append(Downsample(outputs, ops, time=stage > 0, reuse=reuse))
        self.downsamples = nn.ModuleList(stages)
        self.middle = _middle(dims[-1], ops, **how)
        self.head = Head(dims[-1], 2 * config.z_dim, ops, reuse=reuse)

    def forward(self, x_BCTHW: Tensor, cache: StreamCache) -> Tensor:
        """Map a piece of frames to moments [B, 2 * z_dim, 1, H/8, W/8]."""
        x = self.conv1(x_BCTHW, cache)
        for layer in self.downsamples:
            x = layer(x, cache)
        return self.head(_run_middle(self.middle, x, cache), cache)


class Decoder(nn.Module):
    """Maps latents to frames of 8 times the size."""

    def __init__(self, config: VAEConfig, ops: Ops, *, reuse: bool, fuse_bias: bool) -> None:
        """Build four stages of widths 4, 4, 2 and 1 x ``dim``; upsampling halves the width."""
        super().__init__()
        dims = [config.dim * factor for factor in (4, 4, 4, 2, 1)]
        how = {"reuse": reuse, "fuse_bias": fuse_bias}
        self.conv1 = CausalConv(config.z_dim, dims[0], KERNEL, ops, reuse=reuse)
        self.middle = _middle(dims[0], ops, **how)
        stages: list[nn.Module] = []
        inputs = dims[0]
        for stage, outputs in enumerate(dims[1:]):
            stages.append(ResidualBlock(inputs, outputs, ops, **how))
            stages.extend(ResidualBlock(outputs, outputs, ops, **how) for _ in range(2))
            if stage < 3:
                stages.append(Upsample(outputs, ops, time=stage < 2, reuse=reuse))
            inputs = outputs // 2
        self.upsamples = nn.ModuleList(stages)
        self.head = Head(dims[-1], COLORS, ops, reuse=reuse)

    def forward(self, z_BCTHW: Tensor, cache: StreamCache) -> Tensor:
        """Map one latent to frames [B, 3, 1 or 4, 8H, 8W], not clamped."""
        x = self._features(z_BCTHW, cache)
        return self.head(self.upsamples[-1](x, cache), cache)

    def warm(self, z_BCTHW: Tensor, cache: StreamCache, *, last: bool) -> None:
        """Update only the cache, skipping what no later frame depends on.

        The head looks back at two frames of the last block, which the latent just before the
        resumed stream provides (or at one, if that is all there is). Earlier latents affect the
        last block only through the history of its first convolution.

        Args:
            z_BCTHW: One latent.
            cache: The stream that it continues.
            last: Whether the stream is resumed, or the cache used, after this latent.
        """
        x = self._features(z_BCTHW, cache)
        block = self.upsamples[-1]
        assert isinstance(block, ResidualBlock)
        if last:
            seen = min(KERNEL[0] - 1, x.shape[2])
            self.head.remember(block(x, cache, keep=seen), cache)
        else:
            block.remember(x, cache)

    def _features(self, z_BCTHW: Tensor, cache: StreamCache) -> Tensor:
        x = _run_middle(self.middle, self.conv1(z_BCTHW, cache), cache)
        for layer in self.upsamples[:-1]:
            x = layer(x, cache)
        return x


class VAE(nn.Module):
    """Encoder and decoder with the published latent normalisation.

    Build it (on the meta device, if weights follow), load the weights, call `prepare`. Weights are
    frozen; after ``requires_grad_()`` they can be trained, which needs ops with gradients, and are
    prepared again when refrozen.

    Attributes:
        config: Widths and latent statistics.
        reuse: Do less work for the same result (see `vae_layers`); False for the published
            schedule.
        fuse_bias: Whether biases of residual blocks are added by the norm or sum after them.
        sample: The weight of ``conv1``, bf16 on the CPU, which identifies the model: a backend
            may keep weights only in its own layout.
    """

    sample: Tensor | None = None
    latent_mean: Tensor | None
    latent_std: Tensor | None

    def __init__(
        self, config: VAEConfig, ops: Ops, *, reuse: bool = True, fuse_bias: bool = False
    ) -> None:
        """Build the layers, with uninitialised weights."""
        super().__init__()
        self.config, self.reuse, self.fuse_bias = config, reuse, fuse_bias
        z = config.z_dim
        self.encoder = Encoder(config, ops, reuse=reuse, fuse_bias=fuse_bias)
        self.conv1 = CausalConv(2 * z, 2 * z, (1, 1, 1), ops, reuse=reuse)
        self.conv2 = CausalConv(z, z, (1, 1, 1), ops, reuse=reuse)
        self.decoder = Decoder(config, ops, reuse=reuse, fuse_bias=fuse_bias)
        self.register_buffer("latent_mean", None, persistent=False)
        self.register_buffer("latent_std", None, persistent=False)
        for name, module in self.named_modules():
            if isinstance(module, CausalConv):
                module.name = name
        self.requires_grad_(False)

    @torch.no_grad()
    def prepare(self) -> None:
        """Derive what the weights determine, once they have their final values and device."""
        weight = self.conv1.weight
        device = weight.device
        if device.type != "meta" and not is_shape_only(weight):
            self.sample = weight.detach().to("cpu", torch.bfloat16, copy=True).contiguous()
        for name in ("mean", "std"):
            values = torch.tensor(getattr(self.config, name), device=device)
            setattr(self, f"latent_{name}", values.view(-1, 1, 1, 1))
        for module in self.modules():
            if isinstance(module, CausalConv | ResidualBlock | Downsample | Upsample):
                module.prepare()

    def encode(self, video_BCTHW: Tensor, *, halo: Whole = WHOLE) -> Tensor:
        """Encode a whole video.

        Args:
            video_BCTHW: Pixels in [-1, 1], [B, 3, T, H, W], H and W multiples of 8. Frames beyond
                the last full piece (1 + 4 * k frames) are ignored, as published.
            halo: The picture that video and latents are a slice of (see `StreamCache`).

        Returns:
            Latents [B, 16, 1 + k, H/8, W/8] of the model's dtype, normalised.

        Raises:
            UserError: There are no frames, or the size does not fit.
        """
        if video_BCTHW.shape[2] == 0:
            raise UserError("video to encode: it has no frames; pass at least one")
        cache = EncoderCache(halo=halo)
        latents = [self.encode_step(video_BCTHW[:, :, :1], cache)]
        for start in range(1, video_BCTHW.shape[2] - TEMPORAL + 1, TEMPORAL):
            latents.append(self.encode_step(video_BCTHW[:, :, start : start + TEMPORAL], cache))
        return torch.cat(latents, dim=2)

    def encode_step(self, piece_BCTHW: Tensor, cache: EncoderCache) -> Tensor:
        """Encode the next piece of a stream.

        Args:
            piece_BCTHW: Pixels in [-1, 1]: 1 frame first, then 4 at a time.
            cache: The stream; it advances.

        Returns:
            One latent [B, 16, 1, H/8, W/8] of the model's dtype, normalised.

        Raises:
            UserError: The number of frames, channels or the size does not fit.
        """
        _, channels, frames, height, width = piece_BCTHW.shape
        expected = TEMPORAL if cache.pieces else 1
        if frames != expected:
            raise UserError(f"piece of video: {frames} frames where a stream takes {expected}")
        if channels != COLORS or height % SPATIAL or width % SPATIAL or not height * width:
            raise UserError(
                f"video to encode: {channels} channels of {height}x{width}; "
                f"pass {COLORS} channels and multiples of {SPATIAL} rows and columns"
            )
        moments = self.conv1(self.encoder(self._enter(piece_BCTHW), cache))
        cache.pieces += 1
        mean, std = self._statistics()
        latent_BCTHW = moments[:, : self.config.z_dim].float()  # the rest is the log variance
        return ((latent_BCTHW - mean) / std).to(moments.dtype)

    def decode(self, latents_BCTHW: Tensor, *, clamp: bool = True, halo: Whole = WHOLE) -> Tensor:
        """Decode all latents of a video.

        Args:
            latents_BCTHW: [B, 16, T, h, w], normalised.
            clamp: Clamp to [-1, 1], as published; False leaves that, and Inf, to the caller.
            halo: The picture that latents and frames are a slice of (see `StreamCache`).

        Returns:
            Pixels [B, 3, 1 + 4 * (T - 1), 8h, 8w] of the model's dtype.

        Raises:
            UserError: There are no latents, or they do not have 16 channels.
        """
        if latents_BCTHW.shape[2] == 0:
            raise UserError("latents to decode: there are none; pass at least one")
        cache = DecoderCache(halo=halo)
        pieces = latents_BCTHW.split(1, dim=2)
        return torch.cat([self.decode_step(piece, cache, clamp=clamp) for piece in pieces], dim=2)

    def decode_step(
        self, latent_BCTHW: Tensor, cache: DecoderCache, *, clamp: bool = True
    ) -> Tensor:
        """Decode the next latent of a stream.

        Args:
            latent_BCTHW: [B, 16, 1, h, w], normalised.
            cache: The stream; it advances.
            clamp: See `decode`.

        Returns:
            Pixels [B, 3, 1, 8h, 8w] for the first latent and [B, 3, 4, 8h, 8w] for later ones, in
            the model's dtype.

        Raises:
            UserError: It is not one latent of 16 channels.
        """
        frames = self.decoder(self._denormalise(latent_BCTHW), cache)
        cache.pieces += 1
        return frames.clamp_(-1, 1) if clamp else frames

    def warm(self, latents_BCTHW: Tensor, cache: DecoderCache) -> None:
        """Advance a stream over latents whose frames are not needed.

        `decode_step` then continues as if they had been decoded, although not everything was
        computed; the published schedule computes all.

        Args:
            latents_BCTHW: [B, 16, T, h, w], normalised.
            cache: The stream; it advances.

        Raises:
            UserError: They do not have 16 channels.
        """
        pieces = latents_BCTHW.split(1, dim=2)
        for index, piece in enumerate(pieces):
            z = self._denormalise(piece)
            if self.reuse:
                self.decoder.warm(z, cache, last=index == len(pieces) - 1)
            else:
                self.decoder(z, cache)
            cache.pieces += 1

    def _denormalise(self, latent_BCTHW: Tensor) -> Tensor:
        """Convert a latent of the sampler to the decoder's input."""
        if latent_BCTHW.shape[1:3] != (self.config.z_dim, 1):
            channels, count = latent_BCTHW.shape[1:3]
            raise UserError(
                f"latents to decode: {count} of {channels} channels; "
                f"a step takes 1 of {self.config.z_dim}"
            )
        mean, std = self._statistics()
        return self.conv2(self._enter(latent_BCTHW.float() * std + mean))

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the latent channels, fp32 [16, 1, 1, 1]."""
        mean, std = self.latent_mean, self.latent_std
        assert mean is not None and std is not None, "prepare() comes after loading"
        return mean, std

    def _enter(self, x_BCTHW: Tensor) -> Tensor:
        """Convert to the model's dtype and the memory format of its schedule."""
        layout = torch.channels_last_3d if self.reuse else torch.contiguous_format
        return x_BCTHW.to(self.conv1.weight.dtype).contiguous(memory_format=layout)


def _middle(channels: int, ops: Ops, **how: bool) -> nn.ModuleList:
    """Build a residual block, attention, and a residual block."""
    return nn.ModuleList(
        [
            ResidualBlock(channels, channels, ops, **how),
            AttentionBlock(channels, ops),
            ResidualBlock(channels, channels, ops, **how),
        ]
    )


def _run_middle(middle: nn.ModuleList, x_BCTHW: Tensor, cache: StreamCache) -> Tensor:
    before, attention, after = middle
    return after(attention(before(x_BCTHW, cache), cache), cache)
