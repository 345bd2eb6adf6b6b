"""Layers of the DiT. Norms and attention are ops; layers are unaware of ranks.

Shape suffixes: B batch (1 in streaming), L tokens, S keys, D width, H heads, d channels per head,
F latent frames, P persons. Parameter names are those of the published checkpoint, except that
self-attention stores q, k and v in one fused matrix (`SelfAttention.qkv`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from livetalk_kernels.ops import Ops
from livetalk_kernels.runtime.sequence_parallel import LocalSequence

from .config import DiTConfig
from .linear import Linear, linear
from .persons import place_voices, region_map, token_positions
from .quantize import Fp8FeedForward, Fp8Linear, Quantized
from .rope import rotate_1d

# q, k [B, L, D], their norm weights, heads, eps -> normalised and rotated q, k, in the form that
# `LocalSequence.attention` takes.
NormRope = Callable[[Tensor, Tensor, Tensor, Tensor, int, float], tuple[Tensor, Tensor]]


# Makes a linear layer of a block: inputs, outputs -> module; `Linear` in bf16 and fp32.
LinearFactory = Callable[[int, int], nn.Module]


class Scale(nn.Module):
    """The per-channel weight of an RMS norm."""

    def __init__(self, dim: int) -> None:
        """Create ``weight`` [dim]."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))


class Affine(nn.Module):
    """The per-channel weight and bias of a layer norm."""

    def __init__(self, dim: int) -> None:
        """Create ``weight`` and ``bias`` [dim]."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim))


@dataclass(frozen=True, kw_only=True)
class ContextKV:
    """Keys and values of one layer's text and image cross-attention, [B, S, H, d] each.

    ``text_repeats``: number of equal padding rows that the last text row represents.
    """

    k_image: Tensor
    v_image: Tensor
    k_text: Tensor
    v_text: Tensor
    text_repeats: int


@dataclass(frozen=True, kw_only=True)
class AudioKV:
    """Keys and values of one layer's audio cross-attention, [B, F, S, H, d] each."""

    k: Tensor
    v: Tensor


# In training every block computes these from inputs that all blocks share, so that its parameters
# are used only in its `forward`, and can be gathered for it. Tuples, in which torch finds tensors.


class ContextTokens(NamedTuple):
    """What a block computes its `ContextKV` from: embedded text and image, [B, S, D] each."""

    text: Tensor
    image: Tensor
    text_repeats: int


class AudioTokens(NamedTuple):
    """What a block computes its `AudioKV` from: audio tokens [B, F, S, C], a person per sample."""

    tokens: Tensor


class TimeProjection(NamedTuple):
    """What a block adds its own modulation to: the projected timesteps, float32 [B, 6, D]."""

    projected: Tensor


class Place(NamedTuple):
    """Position of the tokens at hand, and how attention finds the others; the same in all blocks.

    ``token_offset``: of the first token from the start of the audio's first frame.
    """

    norm_rope: NormRope
    sequence: LocalSequence
    regions: "Regions | None"
    tokens_per_frame: int
    token_offset: int


class SelfAttention(nn.Module):
    """Full attention over all tokens of a chunk, RMS norm over the whole width, 3-D RoPE."""

    def __init__(self, config: DiTConfig, ops: Ops, linear: LinearFactory, *, fused: bool) -> None:
        """Build the layers; ``fused``: one product for q, k and v; else three, as published."""
        super().__init__()
        self.config, self.ops, self.fused = config, ops, fused
        self.qkv = linear(config.dim, 3 * config.dim)
        self.o = linear(config.dim, config.dim)
        self.norm_q = Scale(config.dim)
        self.norm_k = Scale(config.dim)

    def project(self, x_BLD: Tensor | Quantized) -> tuple[Tensor, ...]:
        """Compute queries, keys and values, [B, L, D] each; strided views if fused."""
        if self.fused:
            return self.qkv(x_BLD).chunk(3, dim=-1)
        assert isinstance(self.qkv, nn.Linear) and isinstance(x_BLD, Tensor), "published: no FP8"
        pairs = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        return tuple(linear(x_BLD, weight, bias) for weight, bias in pairs)

    def forward(
        self,
        x_BLD: Tensor | Quantized,
        norm_rope: NormRope,
        sequence: LocalSequence,
        regions: "Regions | None",
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; with two persons also return every token's position, float32 [L]."""
        heads, eps = self.config.num_heads, self.config.eps
        q_BLD, k_BLD, v_BLD = self.project(x_BLD)
        q, k = norm_rope(q_BLD, k_BLD, self.norm_q.weight, self.norm_k.weight, heads, eps)
        v_BLHd = v_BLD.unflatten(-1, (heads, -1))
        out_BLHd = sequence.attention(q, k, v_BLHd)
        positions = None
        if regions is not None:
            first_SHd = sequence.first_rows(k, regions.tokens_per_frame)
            map_RL = region_map(sequence.by_token(q), first_SHd, regions.weights)
            positions = token_positions(map_RL, *sequence.extremes(map_RL))
        return self.o(out_BLHd.flatten(2)), positions


class ContextAttention(nn.Module):
    """Cross-attention to text and image: one query, two softmaxes, summed before the output."""

    def __init__(self, config: DiTConfig, ops: Ops, linear: LinearFactory) -> None:
        """Build the projections of queries, text tokens and image tokens."""
        super().__init__()
        self.config, self.ops = config, ops
        dim = config.dim
        self.q, self.k, self.v, self.o = (linear(dim, dim) for _ in range(4))
        self.k_img, self.v_img = linear(dim, dim), linear(dim, dim)
        self.norm_q, self.norm_k, self.norm_k_img = Scale(dim), Scale(dim), Scale(dim)

    def keys_values(self, text_BSD: Tensor, image_BSD: Tensor, text_repeats: int) -> ContextKV:
        """Compute K and V of embedded text and image tokens; they depend on the avatar only.

        The four projections may be stored on the host (`DiT.avatar_parameters`), and are copied
        over one by one.
        """

        def project(layer: nn.Module, x_BSD: Tensor) -> Tensor:
            weights = {name: p.to(x_BSD.device) for name, p in layer.named_parameters()}
            result: Tensor = functional_call(layer, weights, (x_BSD,))
            return result

        def split(x_BSD: Tensor) -> Tensor:
            return x_BSD.unflatten(-1, (self.config.num_heads, -1))

        norm, eps = self.ops.rms_norm, self.config.eps
        return ContextKV(
            k_image=split(norm(project(self.k_img, image_BSD), self.norm_k_img.weight, eps=eps)),
            v_image=split(project(self.v_img, image_BSD)),
            k_text=split(norm(project(self.k, text_BSD), self.norm_k.weight, eps=eps)),
            v_text=split(project(self.v, text_BSD)),
            text_repeats=text_repeats,
        )

    def forward(self, x_BLD: Tensor | Quantized, kv: ContextKV) -> Tensor:
        """Attend to text and image."""
        q_BLD = self.ops.rms_norm(self.q(x_BLD), self.norm_q.weight, eps=self.config.eps)
        q_BLHd = q_BLD.unflatten(-1, (self.config.num_heads, -1))
        out_BLHd = self.ops.context_attention(
            q_BLHd, kv.k_image, kv.v_image, kv.k_text, kv.v_text, text_repeats=kv.text_repeats
        )
        return self.o(out_BLHd.flatten(2))


class AudioAttention(nn.Module):
    """Cross-attention of each latent frame to that frame's audio tokens."""

    def __init__(self, config: DiTConfig, ops: Ops, linear: LinearFactory) -> None:
        """Build the projections; keys and values share one matrix, keys first."""
        super().__init__()
        self.config, self.ops = config, ops
        self.q_linear = linear(config.dim, config.dim)
        self.kv_linear = linear(config.output_dim, 2 * config.dim)
        self.proj = linear(config.dim, config.dim)

    def keys_values(self, tokens_PFSC: Tensor) -> AudioKV:
        """Compute K and V of a chunk's audio tokens [P, F, S, C]; they depend on the chunk only."""
        persons, _, tokens_per_person, _ = tokens_PFSC.shape
        kv = self.batch_keys_values(tokens_PFSC.transpose(0, 1).flatten(1, 2)[None])
        if persons == 1:
            return kv
        return AudioKV(k=place_voices(kv.k[0], tokens_per_person)[None], v=kv.v)

    def batch_keys_values(self, tokens_BFSC: Tensor) -> AudioKV:
        """Compute K and V of the audio tokens of several chunks with one person each."""
        heads = self.config.num_heads
        k_BFSHd, v_BFSHd = self.kv_linear(tokens_BFSC).unflatten(-1, (2, heads, -1)).unbind(3)
        return AudioKV(k=k_BFSHd, v=v_BFSHd)

    def forward(
        self,
        x_BLD: Tensor | Quantized,
        kv: AudioKV,
        positions_L: Tensor | None,
        tokens_per_frame: int,
        token_offset: int,
    ) -> Tensor:
        """Attend to the audio; with two persons the queries are rotated to their positions.

        ``token_offset``: of the first token from the start of the first frame of ``kv``.
        """
        q_BLHd = self.q_linear(x_BLD).unflatten(-1, (self.config.num_heads, -1))
        if positions_L is not None:
            q_BLHd = rotate_1d(q_BLHd[0], positions_L)[None]
        out_BLHd = self.ops.audio_attention(
            q_BLHd, kv.k, kv.v, tokens_per_frame=tokens_per_frame, token_offset=token_offset
        )
        return self.proj(out_BLHd.flatten(2))


@dataclass(frozen=True, kw_only=True)
class Regions:
    """Where two persons are: averaging weights float32 [3, tokens_per_frame]."""

    weights: Tensor
    tokens_per_frame: int


class Block(nn.Module):
    """One transformer block: its layers and modulation, connected by `add_norm`."""

    def __init__(
        self, config: DiTConfig, ops: Ops, *, fused: bool, fp8: bool = False, m_major: bool = False
    ) -> None:
        """Build the layers of one block; ``fp8``: with FP8 linear layers, see `Fp8FeedForward`."""
        super().__init__()
        self.ops, self.fp8, self.eps = ops, fp8, config.eps
        linear: LinearFactory = partial(Fp8Linear, ops=ops) if fp8 else Linear
        self.self_attn = SelfAttention(config, ops, linear, fused=fused)
        self.norm3 = Affine(config.dim)
        self.cross_attn = ContextAttention(config, ops, linear)
        self.norm_x = Affine(config.dim)
        self.audio_cross_attn = AudioAttention(config, ops, linear)
        self.ffn = (
            Fp8FeedForward(config.dim, config.ffn_dim, ops, m_major=m_major)
            if fp8
            else nn.Sequential(
                Linear(config.dim, config.ffn_dim),
                nn.GELU(approximate="tanh"),
                Linear(config.ffn_dim, config.dim),
            )
        )
        self.modulation = nn.Parameter(torch.empty(1, 6, config.dim))

    def forward(
        self,
        stream: list[Tensor | None],
        modulation: Tensor | TimeProjection,
        context: ContextKV | ContextTokens,
        audio: AudioKV | AudioTokens,
        place: Place,
    ) -> list[Tensor | None]:
        """Run the block.

        Inputs that depend on neither latent nor step are passed in, or computed: see
            `ContextTokens`.

        Args:
            stream: The residual stream [B, L, D]; what the previous layer adds to it, [B, L, D];
                and the gate of that, [D] or [B, 1, D], None meaning 1. They are removed from the
                list, so that the caller does not keep memory alive that the block no longer needs.
            modulation: float32 [6, D] as in `StepModulation`, or what it is computed from.
            context: Keys and values of text and image, or what they are computed from.
            audio: Keys and values of the audio, or what they are computed from.
            place: Position of the tokens.

        Returns:
            The same three after this block.
        """
        x, y, gate = stream
        stream.clear()
        assert x is not None and y is not None
        if isinstance(context, ContextTokens):
            context = self.cross_attn.keys_values(*context)
        if isinstance(audio, AudioTokens):
            audio = self.audio_cross_attn.batch_keys_values(audio.tokens)
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            self._modulate(modulation.projected)
            if isinstance(modulation, TimeProjection)
            else modulation
        )
        norm, norm3, norm_x = self._norm, self.norm3, self.norm_x
        x, h = norm(x, y, gate, scale1, shift1)
        y, positions = self.self_attn(h, place.norm_rope, place.sequence, place.regions)
        x, h = norm(x, y, gate1, norm3.weight, norm3.bias)
        y = self.cross_attn(h, context)
        x, h = norm(x, y, None, norm_x.weight, norm_x.bias)
        at = place.tokens_per_frame, place.token_offset
        y = self.audio_cross_attn(h, audio, positions, *at)
        x, h = norm(x, y, None, scale2, shift2)
        y = self.ffn(h)
        if isinstance(modulation, TimeProjection):  # FSDP's hooks do not stay on views
            y, gate2 = y.clone(), gate2.clone()
        return [x, y, gate2]

    def _modulate(self, projected_B6D: Tensor) -> tuple[Tensor, ...]:
        """Compute shifts, scales and gates, float32 [D] for one sample, [B, 1, D] for several."""
        modulation_B6D = self.modulation.float() + projected_B6D
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation_B6D.unbind(1)
        parts = shift1, scale1 + 1, gate1, shift2, scale2 + 1, gate2
        return tuple(part[0] if len(part) == 1 else part[:, None] for part in parts)

    def _norm(
        self, x: Tensor, y: Tensor, gate: Tensor | None, weight: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor | Quantized]:
        """Compute the new residual stream, and its norm in the form that the linears take."""
        if not self.fp8:
            return add_norm(self.ops, x, y, gate, weight, bias, eps=self.eps)
        x, *normed = self.ops.add_norm_quant(x, y, gate, weight, bias, eps=self.eps)
        return x, Quantized(*normed)


def add_norm(
    ops: Ops,
    x: Tensor,
    y: Tensor,
    gate: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Apply the op `add_norm`, also to a batch with a modulation per sample.

    Args:
        ops: The bound ops.
        x: Residual stream [B, L, D].
        y: Branch to add [B, L, D].
        gate: [D], or [B, 1, D]; None means 1.
        weight: [D], or [B, 1, D].
        bias: [D], or [B, 1, D].
        eps: Added to the variance.

    Returns:
        x + gate y, and its norm times weight plus bias, [B, L, D] each.
    """
    if gate is not None and gate.ndim > 1:  # the op knows one modulation for all rows
        y, gate = (gate * y).to(y.dtype), None
    if weight.ndim == 1:
        new, normed = ops.add_norm(x, y, gate, weight, bias, eps=eps)
        return new, normed
    width = weight.shape[-1]
    new, normed = ops.add_norm(x, y, gate, weight.new_ones(width), weight.new_zeros(width), eps=eps)
    return new, (normed * weight + bias).to(x.dtype)


class Head(nn.Module):
    """Last modulation and projection to latent channels, in float32."""

    def __init__(self, config: DiTConfig) -> None:
        """Create ``head``: Linear to patch volume x out_dim; ``modulation`` [1, 2, D]."""
        super().__init__()
        out = config.out_dim * config.patch_size[1] * config.patch_size[2]
        self.head = nn.Linear(config.dim, out)
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Project modulated tokens [B, L, D] to float32 [B, L, out]."""
        return linear_fp32(self.head, x_BLD)


class ImageEmbedding(nn.Module):
    """CLIP features to width D: LayerNorm, Linear, GELU (erf), Linear, LayerNorm; eps 1e-5."""

    def __init__(self, config: DiTConfig) -> None:
        """Build the layers; layer 2 of ``proj`` is the activation."""
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(config.image_dim),
            Linear(config.image_dim, config.image_dim),
            nn.GELU(),
            Linear(config.image_dim, config.dim),
            nn.LayerNorm(config.dim),
        )

    def forward(self, features_BSC: Tensor) -> Tensor:
        """Map [B, 257, 1280] to [B, 257, D]."""
        return self.proj(features_BSC)


class AudioProjection(nn.Module):
    """Maps audio feature windows, one per video frame, to audio tokens, one set per latent frame.

    The first latent frame is one video frame and sees its whole window. Each later one is a group
    of ``vae_scale`` video frames and sees the first half of its first frame's window, the centres
    of the inner frames, and the last half of its last frame's window.
    """

    def __init__(self, config: DiTConfig) -> None:
        """Build three linear layers, the first in two versions, and a layer norm (eps 1e-5)."""
        super().__init__()
        self.config = config
        entries = config.audio_window + config.vae_scale - 1
        hidden = config.intermediate_dim
        self.proj1 = Linear(config.audio_window * config.audio_features, hidden)
        self.proj1_vf = Linear(entries * config.audio_features, hidden)
        self.proj2 = Linear(hidden, hidden)
        self.proj3 = Linear(hidden, config.context_tokens * config.output_dim)
        self.norm = nn.LayerNorm(config.output_dim)

    def forward(self, windows: Tensor) -> Tensor:
        """Map [P, 1 + n*vae_scale, window, layers, channels] to [P, 1 + n, tokens, output_dim]."""
        centre = self.config.audio_window // 2
        first = windows[:, :1].flatten(2)
        groups = windows[:, 1:].unflatten(1, (-1, self.config.vae_scale))
        later = torch.cat(
            (
                groups[:, :, 0, : centre + 1].flatten(2),
                groups[:, :, 1:-1, centre].flatten(2),
                groups[:, :, -1, centre:].flatten(2),
            ),
            dim=-1,
        )
        hidden = torch.cat((F.relu(self.proj1(first)), F.relu(self.proj1_vf(later))), dim=1)
        tokens = self.proj3(F.relu(self.proj2(hidden)))
        tokens = tokens.unflatten(-1, (self.config.context_tokens, self.config.output_dim))
        weight, bias = self.norm.weight.float(), self.norm.bias.float()
        normed = F.layer_norm(tokens.float(), weight.shape, weight, bias, self.norm.eps)
        return normed.to(tokens.dtype)


def linear_fp32(layer: nn.Module, x: Tensor) -> Tensor:
    """Apply a linear layer with bias in float32, whatever its storage dtype."""
    assert isinstance(layer, nn.Linear)
    return linear(x.float(), layer.weight.float(), layer.bias.float())
