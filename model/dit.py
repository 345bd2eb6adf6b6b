"""The diffusion transformer: one step of denoising a chunk of latents.

Tokens may be shared among ranks by a `SequenceParallel`: everything that is kept per token then
covers only this rank's tokens, and the result is gathered once, at the end of a step.

Everything that stays constant over steps is computed by a `prepare_*` method and passed to
`DiT.forward`; how often that is done is up to the caller (`stream.work`).

Source: SoulX-FlashTalk (arXiv 2512.23379) on Wan2.1-I2V-14B (arXiv 2503.20314).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from livetalk_kernels.ops import Ops
from livetalk_kernels.precision import full_fp32
from livetalk_kernels.runtime.sequence_parallel import SequenceParallel

from .config import DiTConfig
from .layers import (
    AudioKV,
    AudioProjection,
    AudioTokens,
    Block,
    ContextKV,
    ContextTokens,
    Head,
    ImageEmbedding,
    NormRope,
    Place,
    Regions,
    TimeProjection,
    add_norm,
    linear_fp32,
)
from .linear import Linear, linear
from .persons import REGIONS, region_weights
from .published import PublishedRope
from .rope import rope_table
from .weights.fill import Slot

# The product of one row rounds differently from that of several: with as many rows as a stream's
# schedule has, a training sample gets the same bits as in a stream.
TIME_ROWS = 4


@dataclass(frozen=True, kw_only=True)
class AudioContext:
    """What one chunk's audio contributes to the DiT.

    Attributes:
        layers: Keys and values of every layer, for the frames of the tokens at hand; in training,
            what each layer computes them from.
        regions: Where the persons are, if there are two; else None.
    """

    layers: Sequence[AudioKV | AudioTokens]
    regions: Regions | None


@dataclass(frozen=True, kw_only=True)
class StepModulation:
    """Scales, shifts and gates of one timestep, float32.

    Attributes:
        blocks: [layers, 6, D]: shift1, 1 + scale1, gate1, shift2, 1 + scale2, gate2; in training,
            what each layer computes them from.
        head: [2, D]: shift, 1 + scale; [2, B, 1, D] for several samples.
    """

    blocks: Tensor | Sequence[TimeProjection]
    head: Tensor


_twice = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def _run_block(
    block: Block, x: Tensor, y: Tensor, gate: Tensor | None, *given: Any
) -> list[Tensor | None]:
    """Run a block repeatedly: it removes its inputs from the caller's list itself."""
    stream: list[Tensor | None] = block([x, y, gate], *given)
    return stream


def sinusoid(timestep: Tensor, width: int) -> Tensor:
    """Compute the sinusoidal embedding of timesteps 0..1000.

    ``[cos(t w_i) ..., sin(t w_i) ...]`` with ``w_i = 10000 ** (-i / (width/2))``, in float64.

    Args:
        timestep: [N] any float dtype.
        width: Even width of the embedding.

    Returns:
        float32 [N, width].
    """
    half = width // 2
    rate = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=timestep.device) / half)
    angle = timestep.double()[:, None] * rate
    return torch.cat((angle.cos(), angle.sin()), dim=-1).float()


class DiT(nn.Module):
    """The whole transformer.

    Build it on the meta device, and fill it with `weights.fill.load_module`.
    """

    def __init__(
        self,
        config: DiTConfig,
        ops: Ops,
        *,
        reuse: bool = True,
        fp8: bool = False,
        m_major_scales: bool = False,
        parallel: SequenceParallel | None = None,
        checkpointed: bool = False,
    ) -> None:
        """Build the layers.

        Args:
            config: Shape of the model.
            ops: The bound ops.
            reuse: Fused QKV product and fp32 RoPE tables; False for the published schedule.
            fp8: Use FP8 linear layers in the blocks; needs ``reuse``.
            m_major_scales: Store their scales of 1x128 blocks with neighbouring tokens contiguous.
            parallel: How tokens are shared among ranks; needs ``reuse``. By default they are not.
            checkpointed: In training, keep only the inputs of blocks, and recompute for gradients.
        """
        super().__init__()
        self.parallel = parallel or SequenceParallel.alone(ops)
        assert reuse or not fp8, "the published schedule has no FP8"
        assert reuse or self.parallel.mesh.world == 1, "the published schedule runs on one rank"
        self.config, self.ops, self.reuse, self.fp8 = config, ops, reuse, fp8
        self.m_major_scales, self.checkpointed = m_major_scales, checkpointed
        dim, patch = config.dim, config.patch_size
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, patch, stride=patch)
        self.text_embedding = nn.Sequential(
            Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), Linear(dim, dim)
        )
        self.time_embedding = nn.Sequential(
            Linear(config.freq_dim, dim), nn.SiLU(), Linear(dim, dim)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), Linear(dim, 6 * dim))
        self.img_emb = ImageEmbedding(config)
        self.audio_proj = AudioProjection(config)
        self.blocks = nn.ModuleList(
            Block(config, ops, fused=reuse, fp8=fp8, m_major=m_major_scales)
            for _ in range(config.num_layers)
        )
        self.head = Head(config)

    @property
    def _layers(self) -> Iterable[Block]:
        return cast("Iterable[Block]", self.blocks)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights and of the residual stream."""
        return self.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.patch_embedding.weight.device

    def avatar_parameters(self) -> frozenset[str]:
        """Name the parameters used only by `prepare_context`, once per avatar: a fifth of all."""
        layers = [
            layer
            for block in self._layers
            for layer in (getattr(block.cross_attn, name) for name in ("k", "v", "k_img", "v_img"))
        ]
        wanted = {id(parameter) for layer in layers for parameter in layer.parameters()}
        return frozenset(name for name, p in self.named_parameters() if id(p) in wanted)

    def key_map(self) -> Mapping[str, Slot]:
        """Map published checkpoint keys to their places in this module."""
        slots = {}
        parameters = dict(self.named_parameters())
        for name, parameter in parameters.items():
            scale = f"{name}_scale"  # of an FP8 weight
            if name.endswith("_scale"):
                continue
            quantized = scale if scale in parameters else None
            if ".self_attn.qkv." not in name:
                slots[name] = Slot(name, scale=quantized)
                continue
            rows = parameter.shape[0] // 3
            for index, part in enumerate("qkv"):
                key = name.replace(".qkv.", f".{part}.")
                slots[key] = Slot(name, slice(index * rows, (index + 1) * rows), quantized)
        return slots

    def token_grid(self, latent: Tensor | tuple[int, int, int]) -> tuple[int, int, int]:
        """Compute the token grid (frames, rows, columns) of a latent (frames, height, width)."""
        size = latent if isinstance(latent, tuple) else tuple(latent.shape[-3:])
        frames, height, width = (n // p for n, p in zip(size, self.config.patch_size, strict=True))
        return frames, height, width

    # Inputs of a step other than the latent -------------------------------------------------

    def prepare_rope(self, grid: tuple[int, int, int]) -> NormRope:
        """Build the norm and rotation of q and k for a token grid; depends on the size only."""
        head_dim, device = self.config.head_dim, self.device
        if not self.reuse:
            return PublishedRope(grid, head_dim, self.ops, device)
        table = rope_table(grid, head_dim, device)
        sequence = self.parallel.sequence(math.prod(grid))
        rms_norm_rope = partial(
            self.ops.rms_norm_rope, row_offset=sequence.rows.start, layout=sequence.layout
        )

        def norm_rope(
            q: Tensor, k: Tensor, weight_q: Tensor, weight_k: Tensor, num_heads: int, eps: float
        ) -> tuple[Tensor, Tensor]:
            return rms_norm_rope(
                q, k, weight_q, weight_k, table.cos, table.sin, num_heads=num_heads, eps=eps
            )

        return norm_rope

    def prepare_context(self, text: Tensor, image: Tensor) -> list[ContextKV]:
        """Compute the text and image keys and values of all layers; depends on the avatar only.

        Args:
            text: [L, 4096] prompt embedding, at most ``text_len`` rows. As published, it is padded
                with zero rows *before* the text layers, and the padding is attended to.
            image: [1, 257, 1280] CLIP features.

        Returns:
            One `ContextKV` per layer.
        """
        tokens = self._embed(text[None], image)
        return [block.cross_attn.keys_values(*tokens) for block in self._layers]

    def _embed(self, text_BSC: Tensor, image: Tensor) -> ContextTokens:
        padding = self.config.text_len - text_BSC.shape[1]
        assert padding >= 0, "the caller checks the prompt's length"
        # Padding rows stay equal through every row-wise layer, so one represents all.
        rows, repeats = (1, padding) if self.reuse and padding else (padding, 1)
        text_BSD = self.text_embedding(F.pad(text_BSC.to(self.dtype), (0, 0, 0, rows)))
        return ContextTokens(text_BSD, self.img_emb(image.to(self.dtype)), repeats)

    def prepare_audio(
        self, windows: Tensor, masks: Tensor | None = None, size: tuple[int, int] | None = None
    ) -> AudioContext:
        """Compute the audio keys and values of all layers; depends on the chunk only.

        Args:
            windows: [P, F, window, layers, channels] audio features around every video frame;
                P = 1 or 2 persons, F = 1 + n * vae_scale frames.
            masks: [3, height, width] pixels, above 0 where person 1, person 2, the rest are; needed
                with two persons.
            size: Token rows and columns of a frame; needed with two persons or several ranks.

        Returns:
            The audio context.
        """
        tokens = self.audio_proj(windows.to(self.dtype))
        if self.parallel.mesh.world > 1:
            assert size is not None, "where the tokens at hand are depends on the size"
            per_frame = size[0] * size[1]
            rows = self.parallel.sequence(tokens.shape[1] * per_frame).rows
            tokens = tokens[:, rows.start // per_frame : -(-rows.stop // per_frame)]
        regions = None
        if windows.shape[0] > 1:
            assert masks is not None and masks.shape[0] == REGIONS and size is not None
            weights = region_weights(masks.to(tokens.device), *size)
            regions = Regions(weights=weights, tokens_per_frame=size[0] * size[1])
        layers = [block.audio_cross_attn.keys_values(tokens) for block in self._layers]
        return AudioContext(layers=layers, regions=regions)

    def prepare_steps(self, timesteps: Tensor) -> list[StepModulation]:
        """Compute the modulation of every timestep, in float32; depends on the schedule only.

        Args:
            timesteps: [N] shifted timesteps, 0 to 1000.

        Returns:
            One `StepModulation` per timestep.
        """
        projected_N6D, head_N2D = self._embed_time(timesteps)
        blocks = torch.cat([block.modulation for block in self._layers]).float()
        blocks = blocks + projected_N6D[:, None]
        blocks[:, :, [1, 4]] += 1
        return [StepModulation(blocks=b, head=h) for b, h in zip(blocks, head_N2D, strict=True)]

    def _embed_time(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the blocks' projection, [N, 6, D], and the head's modulation, [N, 2, D]."""
        wave = sinusoid(timesteps.to(self.device), self.config.freq_dim)
        hidden = F.silu(linear_fp32(self.time_embedding[0], wave))
        embedding = linear_fp32(self.time_embedding[2], hidden)
        projected = linear_fp32(self.time_projection[1], F.silu(embedding))
        shift, scale = (self.head.modulation.float() + embedding[:, None]).unbind(1)
        return projected.unflatten(-1, (6, -1)), torch.stack((shift, scale + 1), dim=1)

    def prepare_condition(self, condition_BCTHW: Tensor) -> Tensor:
        """Embed the patches (with bias) of the constant channels; depends on the avatar only.

        Args:
            condition_BCTHW: [B, 20, T, H, W] mask (4) and portrait latent (16).

        Returns:
            [B, L, D], for the tokens at hand.
        """
        return self._patches(condition_BCTHW, slice(self.config.out_dim, None), bias=True)

    def _patches(self, x_BCTHW: Tensor, channels: slice, *, bias: bool) -> Tensor:
        weight = self.patch_embedding.weight[:, channels]
        offset = self.patch_embedding.bias if bias else None
        x_BCTHW, patch = x_BCTHW.to(self.dtype), self.config.patch_size
        if not self.reuse:
            with full_fp32(x_BCTHW):
                out = F.conv3d(x_BCTHW, weight, offset, stride=patch)
            return out.flatten(2).transpose(1, 2).contiguous()
        # Patches do not overlap: as rows of a matrix, tokens can be computed separately.
        split = x_BCTHW
        for dim, size in enumerate(patch):
            split = split.unflatten(2 + 2 * dim, (-1, size))
        patches_BLC = split.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(1, 3).flatten(2)
        rows = self.parallel.sequence(patches_BLC.shape[1]).rows
        return linear(patches_BLC[:, rows], weight.flatten(1), offset)

    # The same for a training batch: shared inputs, from which each block computes its own -----

    def embed_context(self, text_BSC: Tensor, image: Tensor) -> list[ContextTokens]:
        """Do what `prepare_context` does, for several samples.

        Args:
            text_BSC: [B, L, 4096] prompt embeddings, padded with zeros.
            image: [B, 257, 1280] CLIP features.
        """
        return [self._embed(text_BSC, image)] * self.config.num_layers

    def embed_audio(self, windows: Tensor) -> AudioContext:
        """Do what `prepare_audio` does, for several samples.

        Args:
            windows: [B, F, window, layers, channels], one person per sample.
        """
        tokens = AudioTokens(self.audio_proj(windows.to(self.dtype)))
        return AudioContext(layers=[tokens] * self.config.num_layers, regions=None)

    def embed_steps(self, timesteps: Tensor) -> StepModulation:
        """Do what `prepare_steps` does, for several samples with a timestep each.

        Args:
            timesteps: [B] shifted timesteps, 0 to 1000.
        """
        count = len(timesteps)
        padded = F.pad(timesteps, (0, -count % TIME_ROWS))
        projected_B6D, head_B2D = (rows[:count] for rows in self._embed_time(padded))
        head = head_B2D[0] if len(head_B2D) == 1 else head_B2D.transpose(0, 1).unsqueeze(2)
        return StepModulation(
            blocks=[TimeProjection(projected_B6D)] * self.config.num_layers, head=head
        )

    # One step -----------------------------------------------------------------------------

    def forward(
        self,
        latent_BCTHW: Tensor,
        *,
        condition: Tensor,
        step: StepModulation,
        context: Sequence[ContextKV | ContextTokens],
        audio: AudioContext,
        norm_rope: NormRope,
    ) -> Tensor:
        """Predict the flow of a chunk at one timestep; in training, of several chunks.

        Args:
            latent_BCTHW: [B, 16, T, H, W] noisy latents; B is 1 except in training.
            condition: From `prepare_condition`.
            step: The timestep's modulation, from `prepare_steps` or `embed_steps`.
            context: From `prepare_context` or `embed_context`.
            audio: From `prepare_audio` or `embed_audio`.
            norm_rope: From `prepare_rope`.

        Returns:
            float32 [B, 16, T, H, W]: the raw model output, the negative of the flow that the
            sampler uses.
        """
        grid = self.token_grid(latent_BCTHW)
        tokens_per_frame = grid[1] * grid[2]
        sequence = self.parallel.sequence(math.prod(grid))
        place = Place(
            norm_rope=norm_rope,
            sequence=sequence,
            regions=audio.regions,
            tokens_per_frame=tokens_per_frame,
            token_offset=sequence.rows.start % tokens_per_frame,
        )
        # The residual stream, what the previous layer adds to it, and the gate of that.
        stream = [
            condition,
            self._patches(latent_BCTHW, slice(self.config.out_dim), bias=False),
            None,
        ]
        again = self.checkpointed and torch.is_grad_enabled()
        for block, modulation, context_kv, audio_kv in zip(
            self._layers, step.blocks, context, audio.layers, strict=True
        ):
            given = modulation, context_kv, audio_kv, place
            if again:
                stream = _twice(partial(_run_block, block), *stream, *given)
            else:
                stream = block(stream, *given)
        x, y, gate = stream
        assert x is not None and y is not None
        shift, scale = step.head
        _, h = add_norm(self.ops, x, y, gate, scale, shift, eps=self.config.eps)
        return self._unpatch(sequence.gather(self.head(h)), grid)

    def _unpatch(self, tokens_BLC: Tensor, grid: tuple[int, int, int]) -> Tensor:
        """Rearrange (row, column, channel) patches, channel fastest, to [B, 16, T, H, W]."""
        _, rows, columns = self.config.patch_size
        patches = tokens_BLC.unflatten(1, grid).unflatten(-1, (rows, columns, self.config.out_dim))
        return patches.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
