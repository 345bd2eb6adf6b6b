"""Shapes of the model: what the weights look like, not how they run.

Sources: the published ``config.json`` of the DiT (written by diffusers' ``save_pretrained``), the
tensors of the published checkpoints, and the Wan2.1 latent statistics.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self, TypeAlias, get_args

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import build, read_json

_SHORT_DTYPES = MappingProxyType({"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"})

# Mean and standard deviation of each latent channel over Wan2.1's training data. The network
# sees (latent - mean) / std.
_LATENT_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
_LATENT_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip

# A chunk as in training. The first latent is one video frame, each later one four.
FRAMES_PER_LATENT = 4
LATENT_FRAMES = 9
MOTION_LATENTS = 2  # repeat the end of the chunk before
CHUNK_FRAMES = 1 + (LATENT_FRAMES - 1) * FRAMES_PER_LATENT
MOTION_FRAMES = 1 + (MOTION_LATENTS - 1) * FRAMES_PER_LATENT
NEW_FRAMES = CHUNK_FRAMES - MOTION_FRAMES

# Switches of the published model class. Only this combination was ever trained and published; any
# other would change the arithmetic, so it is rejected rather than ignored.
FIXED_SWITCHES = MappingProxyType(
    {
        "model_type": "i2v",
        "qk_norm": True,
        "cross_attn_norm": True,
        "norm_input_visual": True,
        "norm_output_audio": True,
        "window_size": [-1, -1],
    }
)

# Field of AudioEncoderConfig -> key of transformers' Wav2Vec2Config.
WAV2VEC2_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "layers": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads",
        "ffn_dim": "intermediate_size", "activation": "hidden_act", "eps": "layer_norm_eps",
        "pre_norm": "do_stable_layer_norm", "conv_dim": "conv_dim", "conv_kernel": "conv_kernel",
        "conv_stride": "conv_stride", "conv_bias": "conv_bias", "conv_norm": "feat_extract_norm",
        "conv_activation": "feat_extract_activation", "pos_conv_kernel": "num_conv_pos_embeddings",
        "pos_conv_groups": "num_conv_pos_embedding_groups",
    }
)  # fmt: skip
# Names in wav2vec2's config.json.
ConvNorm: TypeAlias = Literal["group", "layer"]
Activation: TypeAlias = Literal[
    "gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh",
    "gelu_python_tanh", "gelu_10", "quick_gelu", "relu", "silu", "swish",
]  # fmt: skip


# Upper bounds: far beyond any model of this kind, and small enough that products of sizes still are
# valid tensor sizes. Widths, and whatever is not listed, may be up to _MOST.
_MOST = 1 << 16
_MOST_PARAMETERS = 10**12
_MOST_DIT: Mapping[str, int] = MappingProxyType(
    {
        "ffn_dim": 1 << 20, "num_heads": 1024, "num_layers": 1024, "in_dim": 4096,
        "out_dim": 4096, "audio_window": 1023, "audio_layers": 1024, "vae_scale": 64,
    }
)  # fmt: skip
_MOST_VAE: Mapping[str, int] = MappingProxyType({"dim": 4096, "z_dim": 4096})
_MOST_AUDIO: Mapping[str, int] = MappingProxyType(
    {
        "layers": 1024, "heads": 1024, "ffn_dim": 1 << 20, "conv_kernel": 4096,
        "conv_stride": 4096, "pos_conv_kernel": 4096, "sample_rate": 1 << 20,
    }
)  # fmt: skip
_MOST_CONVOLUTIONS = 64


def _require(condition: bool, field: str, message: str) -> None:
    if not condition:
        raise UserError(f"{field}: {message}")


def _require_sizes(values: Mapping[str, Any], most: Mapping[str, int]) -> None:
    for name, value in values.items():
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        _require(
            is_integer and 0 < value <= most.get(name, _MOST),
            name,
            f"must be a positive integer, {most.get(name, _MOST)} at most, got {value!r:.40}",
        )


def _require_epsilon(value: object) -> None:
    possible = isinstance(value, float) and 0 < value < 1
    _require(possible, "eps", f"must be a number between 0 and 1, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """Shape of the diffusion transformer; the defaults are those of the published checkpoint.

    Attributes:
        dim: Width of the residual stream.
        ffn_dim: Hidden width of each block's feed-forward.
        num_heads: Attention heads; ``dim / num_heads`` channels each.
        num_layers: Transformer blocks.
        freq_dim: Width of the sinusoidal time embedding.
        in_dim: Input channels: latent, mask and conditioning latent (16 + 4 + 16).
        out_dim: Output channels, those of the latent.
        text_len: Rows that the text embedding is padded to.
        text_dim: Width of the text embedding (umT5-XXL).
        image_len: Tokens of the image embedding (CLIP ViT-H/14: class token + 16 x 16).
        image_dim: Width of the image embedding.
        patch_size: Latent frames, rows and columns per token.
        audio_window: Video frames of audio embedding around each frame (odd).
        audio_layers: Layers of the audio encoder whose outputs are used.
        audio_dim: Width of the audio encoder.
        intermediate_dim: Hidden width of the audio projection.
        context_tokens: Audio tokens per latent frame and person.
        output_dim: Width of an audio token.
        vae_scale: Video frames per latent frame.
        eps: Epsilon of the blocks' norms.

    Raises:
        UserError: A value is invalid; the message starts with the field's name.
    """

    dim: int = 5120
    ffn_dim: int = 13824
    num_heads: int = 40
    num_layers: int = 40
    freq_dim: int = 256
    in_dim: int = 36
    out_dim: int = 16
    text_len: int = 512
    text_dim: int = 4096
    image_len: int = 257
    image_dim: int = 1280
    patch_size: tuple[int, int, int] = (1, 2, 2)
    audio_window: int = 5
    audio_layers: int = 12
    audio_dim: int = 768
    intermediate_dim: int = 512
    context_tokens: int = 32
    output_dim: int = 768
    vae_scale: int = 4
    eps: float = 1e-6

    def __post_init__(self) -> None:
        """Reject invalid shapes."""
        integers = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("patch_size", "eps")
        }
        _require_sizes(integers, _MOST_DIT)
        _require_epsilon(self.eps)
        _require(
            self.patch_size == (1, 2, 2),
            "patch_size",
            f"must be (1, 2, 2), got {self.patch_size!r}",
        )
        _require(
            self.dim % self.num_heads == 0,
            "num_heads",
            f"{self.num_heads} heads do not divide dim {self.dim}",
        )
        _require(
            self.head_dim % 2 == 0,
            "num_heads",
            f"dim {self.dim} / {self.num_heads} heads = {self.head_dim} channels, must be even",
        )
        _require(self.freq_dim % 2 == 0, "freq_dim", f"must be even, got {self.freq_dim}")
        _require(self.audio_window % 2 == 1, "audio_window", f"must be odd: {self.audio_window}")
        channels = 2 * self.out_dim + self.vae_scale
        _require(
            self.in_dim == channels,
            "in_dim",
            f"must be latent + mask + conditioning = {channels} channels, got {self.in_dim}",
        )
        _require(
            self.fewest_parameters <= _MOST_PARAMETERS,
            "num_layers",
            f"{self.num_layers} layers of width {self.dim} have {self.fewest_parameters:.0e} "
            f"parameters or more, {_MOST_PARAMETERS:.0e} is the most",
        )

    @property
    def fewest_parameters(self) -> int:
        """Parameters in the largest matrices alone: a lower bound that needs no model."""
        block = 8 * self.dim**2 + 2 * self.dim * self.ffn_dim
        audio = self.audio_window * self.audio_features * self.intermediate_dim
        tokens = self.intermediate_dim * self.context_tokens * self.output_dim
        return self.num_layers * block + audio + tokens

    @property
    def head_dim(self) -> int:
        """Channels per attention head."""
        return self.dim // self.num_heads

    @property
    def dims(self) -> dict[str, int]:
        """Sizes for binding its ops: width, heads, channels per head."""
        return {"D": self.dim, "H": self.num_heads, "d": self.head_dim}

    @property
    def audio_features(self) -> int:
        """Audio values per video frame: layers times width of the audio encoder."""
        return self.audio_layers * self.audio_dim

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read the published ``config.json``.

        ``save_pretrained`` writes neither ``patch_size`` nor ``text_dim`` nor the audio encoder's
        size:
        absent keys keep their defaults. Keys that are not ours (``_class_name``, ...) are ignored.

        Args:
            path: The file.

        Returns:
            The configuration.

        Raises:
            UserError: The file is missing, is not JSON, or holds an invalid value; the message
                names the file and the field.
        """
        values = read_config(path)
        for name, expected in FIXED_SWITCHES.items():
            if values.get(name, expected) != expected:
                raise UserError(
                    f"{path}: {name}: {values[name]!r} is not supported; "
                    f"the published model has {expected!r}"
                )
        names = {field.name for field in dataclasses.fields(cls)}
        known = {name: value for name, value in values.items() if name in names}
        try:
            return build(cls, known)
        except ValueError as error:
            raise UserError(f"{path}: {error}; restore the published config.json") from None


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """Shape of the Wan2.1 causal video VAE.

    Attributes:
        dim: Channels of the first encoder stage; stages have 1, 1, 2, 4, 4 times as many.
        z_dim: Latent channels; 16, because the published latent statistics have 16 entries.
    """

    dim: int = 96
    z_dim: int = 16

    def __post_init__(self) -> None:
        """Reject invalid shapes."""
        _require_sizes({"dim": self.dim, "z_dim": self.z_dim}, _MOST_VAE)
        published = len(_LATENT_MEAN)
        _require(self.z_dim == published, "z_dim", f"must be {published}, got {self.z_dim}")

    @property
    def mean(self) -> tuple[float, ...]:
        """Published mean of each latent channel."""
        return _LATENT_MEAN

    @property
    def std(self) -> tuple[float, ...]:
        """Published standard deviation of each latent channel."""
        return _LATENT_STD


@dataclass(frozen=True, kw_only=True)
class AudioEncoderConfig:
    """Shape of the wav2vec2 audio encoder; the defaults are wav2vec2-base.

    The published large encoders have ``pre_norm``, ``conv_norm="layer"`` and ``conv_bias``.

    Attributes:
        layers: Transformer layers.
        width: Width of the transformer.
        heads: Attention heads.
        ffn_dim: Hidden width of the feed-forward.
        conv_dim: Channels of each convolution of the feature extractor.
        conv_kernel: Kernel of each of them, in samples of its input.
        conv_stride: Stride of each of them.
        pos_conv_kernel: Kernel of the convolutional position embedding.
        pos_conv_groups: Groups of the convolutional position embedding.
        sample_rate: Samples per second of the input.
        activation: Activation of the feed-forward.
        eps: Epsilon of the transformer's norms.
        pre_norm: Whether norms precede attention and feed-forward, rather than following the sums.
        conv_norm: ``group``, after the first convolution; or ``layer``, after every one.
        conv_activation: Activation of the convolutions.
        conv_bias: Whether the feature extractor's convolutions have biases.

    Raises:
        UserError: A value is invalid; the message starts with the field's name.
    """

    layers: int = 12
    width: int = 768
    heads: int = 12
    ffn_dim: int = 3072
    conv_dim: tuple[int, ...] = (512,) * 7
    conv_kernel: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_stride: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    pos_conv_kernel: int = 128
    pos_conv_groups: int = 16
    sample_rate: int = 16000
    activation: Activation = "gelu"
    eps: float = 1e-5
    pre_norm: bool = False
    conv_norm: ConvNorm = "group"
    conv_activation: Activation = "gelu"
    conv_bias: bool = False

    def __post_init__(self) -> None:
        """Reject invalid shapes."""
        stages = ("conv_dim", "conv_kernel", "conv_stride")
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        sizes = [field.name for field in dataclasses.fields(self) if field.type is int]
        _require_sizes({name: values[name] for name in sizes}, _MOST_AUDIO)
        _require_epsilon(self.eps)
        named = {"activation": Activation, "conv_activation": Activation, "conv_norm": ConvNorm}
        for name, known in named.items():
            found, listed = values[name], get_args(known)
            _require(found in listed, name, f"{found!r:.40} is not one of {', '.join(listed)}")
        _require(bool(self.conv_dim), "conv_dim", "has no entries")
        for name in stages:
            _require(isinstance(values[name], tuple), name, f"must be a list: {values[name]!r}")
            _require(
                len(values[name]) <= _MOST_CONVOLUTIONS,
                name,
                f"{len(values[name])} entries, {_MOST_CONVOLUTIONS} is the most",
            )
            for value in values[name]:
                _require_sizes({name: value}, _MOST_AUDIO)
            _require(
                len(values[name]) == len(self.conv_dim),
                name,
                f"{len(values[name])} entries, but conv_dim has {len(self.conv_dim)}",
            )
        for name in ("heads", "pos_conv_groups"):
            _require(
                self.width % values[name] == 0,
                name,
                f"{values[name]} does not divide width {self.width}",
            )

    @classmethod
    def from_json(cls, path: str | Path) -> Self:
        """Read the ``config.json`` of a wav2vec2 folder, as written by transformers.

        Args:
            path: The file; absent keys keep wav2vec2-base's values.

        Returns:
            The configuration.

        Raises:
            UserError: The file is missing, is not JSON, or holds an invalid value; the message
                names the file and the field.
        """
        values = read_config(path)
        known = {name: values[key] for name, key in WAV2VEC2_KEYS.items() if key in values}
        try:
            return build(cls, known)
        except ValueError as error:
            field = re.match(r"\w*", str(error))[0]  # type: ignore[index]  # matches at least ""
            message = WAV2VEC2_KEYS.get(field, field) + str(error).removeprefix(field)
            raise UserError(f"{path}: {message}; restore the published config.json") from None


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named model size.

    Attributes:
        name: Value of ``--preset``.
        dit: Diffusion transformer.
        vae: Video VAE.
        audio: Audio encoder.
        size: Default picture size (height, width) in pixels.
        note: One line for display.
        bundled: Whether trained weights come with the package; otherwise weights are random.
    """

    name: str
    dit: DiTConfig
    vae: VAEConfig
    audio: AudioEncoderConfig
    size: tuple[int, int]
    note: str
    bundled: bool = False

    def __post_init__(self) -> None:
        """Reject parts that do not fit together."""
        _require(
            (self.dit.audio_layers, self.dit.audio_dim) == (self.audio.layers, self.audio.width),
            "audio",
            f"encoder {self.audio.layers} x {self.audio.width}, but the DiT takes "
            f"{self.dit.audio_layers} x {self.dit.audio_dim}",
        )
        _require(
            all(pixels > 0 and pixels % 16 == 0 for pixels in self.size),
            "size",
            f"must be multiples of 16, got {self.size}",
        )


_PRESETS = (
    Preset(
        name="14b",
        dit=DiTConfig(),
        vae=VAEConfig(), audio=AudioEncoderConfig(), size=(768, 448),
        note="the published model, 18.9 B parameters",
    ),
    Preset(
        name="small",
        dit=DiTConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
        vae=VAEConfig(), audio=AudioEncoderConfig(), size=(768, 448),
        note="a 12-head model for one small GPU",
    ),
    Preset(
        name="mid",
        dit=DiTConfig(dim=512, ffn_dim=1408, num_heads=4, num_layers=8),
        vae=VAEConfig(), audio=AudioEncoderConfig(), size=(128, 128),
        note="the published VAE with a small transformer, for measurements on a CPU",
    ),
    Preset(
        name="tiny",
        dit=DiTConfig(
            dim=256, ffn_dim=704, num_heads=4, num_layers=4, audio_layers=4, audio_dim=128,
            intermediate_dim=64, output_dim=128,
        ),
        vae=VAEConfig(dim=8),
        audio=AudioEncoderConfig(
            layers=4, width=128, heads=4, ffn_dim=256, conv_dim=(32,) * 7, pos_conv_kernel=16,
            pos_conv_groups=8,
        ),
        size=(64, 64), note="made for real time on two CPU cores",
    ),
    Preset(
        name="demo",
        dit=DiTConfig(  # zeros replace text and image: one short row of each suffices
            dim=192, ffn_dim=512, num_heads=4, num_layers=4, audio_layers=2, audio_dim=96,
            intermediate_dim=64, output_dim=96, text_len=1, text_dim=16, image_len=1, image_dim=16,
        ),
        vae=VAEConfig(dim=12),
        audio=AudioEncoderConfig(
            layers=2, width=96, heads=4, ffn_dim=192, conv_dim=(32,) * 7, pos_conv_kernel=16,
            pos_conv_groups=8,
        ),
        size=(96, 96), note="what 'livetalk train' makes on a CPU", bundled=True,
    ),
)  # fmt: skip

PRESETS: Mapping[str, Preset] = MappingProxyType({preset.name: preset for preset in _PRESETS})


def get_preset(name: str) -> Preset:
    """Look up a preset by name.

    Raises:
        UserError: It does not exist; the message lists those that do.
    """
    if name not in PRESETS:
        raise UserError(f"--preset {name}: unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint's ``config.json`` or index.

    Raises:
        UserError: See `inputs.read_json`.
    """
    return read_json(path, Path(path).name, cure="download the file again")


def short_dtype(name: str) -> str:
    """Shorten torch's name of a dtype: ``fp32`` for ``float32``; other names are unchanged."""
    return _SHORT_DTYPES.get(name, name)
