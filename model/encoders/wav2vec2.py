"""wav2vec2's network: a convolutional feature extractor and a transformer over its features.

After Baevski et al., "wav2vec 2.0", 2020, in both published layouts. *Base* has a group norm after
its first convolution and norms after the transformer's residuals; *large* has a layer norm after
every convolution and norms before attention and feed-forward. Parameter names are those of
transformers' ``Wav2Vec2Model``, which wrote the published files.

Layout legend: B batch, N samples, T features in time, C channels per feature, D width, H heads,
d channels per head.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import Activation, AudioEncoderConfig
from ..linear import Linear

Pointwise = Callable[[Tensor], Tensor]

_PARTS = "parametrizations"  # PyTorch's name, which published files have

_gelu_tanh = partial(F.gelu, approximate="tanh")


def _gelu_10(x: Tensor) -> Tensor:
    return F.gelu(x).clamp(-10, 10)


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[Activation, Pointwise] = MappingProxyType(
    {
        "gelu": F.gelu,
        "gelu_python": F.gelu,
        "gelu_new": _gelu_tanh,
        "gelu_fast": _gelu_tanh,
        "gelu_accurate": _gelu_tanh,
        "gelu_pytorch_tanh": _gelu_tanh,
        "gelu_python_tanh": _gelu_tanh,
        "gelu_10": _gelu_10,
        "quick_gelu": _quick_gelu,
        "relu": F.relu,
        "silu": F.silu,
        "swish": F.silu,
    }
)
"""Activation names in ``config.json``; several denote the same formula."""


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of [B, C, T]."""

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Normalise; the result is a strided view."""
        return super().forward(x_BCT.transpose(1, 2)).transpose(1, 2)


class Convolution(nn.Module):
    """One stage of the feature extractor: convolution, norm if there is one, activation."""

    layer_norm: nn.Module | None  # the name of either norm in checkpoints

    def __init__(self, config: AudioEncoderConfig, index: int) -> None:
        """Build the stage with index ``index``."""
        super().__init__()
        inputs, outputs = (1, *config.conv_dim)[index : index + 2]
        kernel, stride = config.conv_kernel[index], config.conv_stride[index]
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride, bias=config.conv_bias)
        self.layer_norm = None
        if config.conv_norm == "layer":
            self.layer_norm = ChannelNorm(outputs)
        elif index == 0:
            self.layer_norm = nn.GroupNorm(outputs, outputs)  # of each channel over time
        self.activation = ACTIVATIONS[config.conv_activation]

    def forward(self, x_BCT: Tensor) -> Tensor:
        """Map [B, C, T] to [B, C', T'] with T' = (T - kernel) // stride + 1."""
        x_BCT = self.conv(x_BCT)
        if self.layer_norm is not None:
            x_BCT = self.layer_norm(x_BCT)
        return self.activation(x_BCT)


class FeatureExtractor(nn.Module):
    """Samples to features, about 49 per second at 16 kHz."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        """Build all stages."""
        super().__init__()
        stages = range(len(config.conv_dim))
        self.conv_layers = nn.ModuleList(Convolution(config, index) for index in stages)

    def forward(self, samples_BN: Tensor) -> Tensor:
        """Map [B, N] to [B, C, T]."""
        x_BCT = samples_BN[:, None]
        for stage in self.conv_layers:
            x_BCT = stage(x_BCT)
        return x_BCT


class FeatureProjection(nn.Module):
    """Layer norm of features, and their projection to the transformer's width."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        """Build norm and linear layer."""
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.conv_dim[-1], eps=config.eps)
        self.projection = Linear(config.conv_dim[-1], config.width)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Map [B, T, C] to [B, T, D]."""
        return self.projection(self.layer_norm(x_BTC))


class SplitWeight(nn.Module):
    """A weight norm's parts: weight = g * v / |v|, the norm over all but the last dimension.

    Salimans and Kingma, 2016. PyTorch's own, which computes the norm when it is put on, imports its
    compiler for that on the meta device: a second and a half of a start.

    Attributes:
        original0: g, [1, 1, K].
        original1: v, [O, I, K].
    """

    def __init__(self, weight_OIK: Tensor) -> None:
        """Split a weight; on the meta device into parts without values."""
        super().__init__()
        meta = weight_OIK.is_meta
        length = weight_OIK.new_empty(1, 1, weight_OIK.shape[2]) if meta else _length(weight_OIK)
        self.original0 = nn.Parameter(length)
        self.original1 = nn.Parameter(weight_OIK)

    def joined(self) -> Tensor:
        """Compute the weight, [O, I, K]."""
        return self.original1 * (self.original0 / _length(self.original1))


def _length(weight_OIK: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight_OIK, dim=(0, 1), keepdim=True)


class PositionalConvolution(nn.Module):
    """The position embedding: a grouped convolution over time, centred, and an activation."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        """Build the convolution; its weight is a single tensor here, see `split_weight_norm`."""
        super().__init__()
        width, kernel, groups = config.width, config.pos_conv_kernel, config.pos_conv_groups
        self.conv = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=groups)
        self.activation = ACTIVATIONS[config.conv_activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]; an even kernel reaches one step further back than ahead."""
        y_BDT = self.conv(x_BTD.transpose(1, 2))[..., : x_BTD.shape[1]]
        return self.activation(y_BDT).transpose(1, 2)


class Attention(nn.Module):
    """Full self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        """Build four projections with biases."""
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            Linear(width, width) for _ in range(4)
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        q_BHTd, k_BHTd, v_BHTd = (
            project(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        scale = q_BHTd.shape[-1] ** -0.5
        y_BHTd = F.scaled_dot_product_attention(q_BHTd, k_BHTd, v_BHTd, scale=scale)
        return self.out_proj(y_BHTd.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        """Build two linear layers with biases."""
        super().__init__()
        self.intermediate_dense = Linear(config.width, config.ffn_dim)
        self.output_dense = Linear(config.ffn_dim, config.width)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        return self.output_dense(self.activation(self.intermediate_dense(x_BTD)))


class Layer(nn.Module):
    """One transformer layer; ``pre_norm``: norms precede its parts rather than follow the sums."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        """Build attention, feed-forward and a norm for each."""
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = Attention(config.width, config.heads)
        self.layer_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.feed_forward = FeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.width, eps=config.eps)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map [B, T, D] to [B, T, D]."""
        if self.pre_norm:
            x_BTD = x_BTD + self.attention(self.layer_norm(x_BTD))
            return x_BTD + self.feed_forward(self.final_layer_norm(x_BTD))
        x_BTD = self.layer_norm(x_BTD + self.attention(x_BTD))
        return self.final_layer_norm(x_BTD + self.feed_forward(x_BTD))


class Encoder(nn.Module):
    """The transformer: position embedding, layers, and one more norm, first or last."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        """Build all layers."""
        super().__init__()
        self.pre_norm = config.pre_norm
        self.pos_conv_embed = PositionalConvolution(config)
        self.layer_norm = nn.LayerNorm(config.width, eps=config.eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))

    def forward(self, x_BTD: Tensor) -> list[Tensor]:
        """Map [B, T, D] to all layers' outputs, [B, T, D] each; a final norm is in the last."""
        x_BTD = x_BTD + self.pos_conv_embed(x_BTD)
        if not self.pre_norm:
            x_BTD = self.layer_norm(x_BTD)
        outputs = []
        for layer in self.layers:
            x_BTD = layer(x_BTD)
            outputs.append(x_BTD)
        if self.pre_norm:
            outputs[-1] = self.layer_norm(x_BTD)
        return outputs


class Wav2Vec2(nn.Module):
    """The whole network.

    Attributes:
        config: Its shape.
    """

    def __init__(self, config: AudioEncoderConfig) -> None:
        """Build it, on the meta device if that is the default."""
        super().__init__()
        self.config = config
        self.feature_extractor = FeatureExtractor(config)
        self.feature_projection = FeatureProjection(config)
        self.encoder = Encoder(config)

    def forward(self, features_BTC: Tensor) -> list[Tensor]:
        """Map features [B, T, C], resampled or not, to every layer's output, [B, T, D] each."""
        return self.encoder(self.feature_projection(features_BTC))

    def split_weight_norm(self) -> None:
        """Store the positional weight like checkpoints do, in the two parts of a `SplitWeight`."""
        conv = self.encoder.pos_conv_embed.conv
        parts = SplitWeight(conv.weight.detach())
        del conv.weight
        conv.add_module(_PARTS, nn.ModuleDict({"weight": parts}))

    def fold_weight_norm(self) -> None:
        """Compute that weight once, and store it as one tensor again."""
        conv = self.encoder.pos_conv_embed.conv
        parts = conv.get_submodule(f"{_PARTS}.weight")
        assert isinstance(parts, SplitWeight)
        conv.weight = nn.Parameter(parts.joined().detach())
        delattr(conv, _PARTS)
