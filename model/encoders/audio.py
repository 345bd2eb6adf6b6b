"""Speech to per-frame features: loudness, wav2vec2, windows, and the 8 s stream.

Arithmetic after SoulX-FlashTalk (commit 688982e): wav2vec2's convolutional features (about 49 per
second) are interpolated to the video's frame rate before its transformer, and the outputs of all
transformer layers are kept. wav2vec2: Baevski et al., 2020; loudness: ITU-R BS.1770-4.

Layout legend: N samples, L video frames, C channels.
"""

from fractions import Fraction
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from livetalk_kernels.errors import UserError
from livetalk_kernels.precision import full_fp32

from ..config import AudioEncoderConfig, read_config
from ..weights.fill import Slot, TensorFiles, load_module, open_weights, random_module
from .loudness import GATE_SECONDS, LoudnessMeter
from .wav2vec2 import Wav2Vec2

_TARGET_LUFS = -23.0
_NO_LOUDNESS = 100.0  # silence measures -inf; levels beyond this are left unchanged
_VARIANCE_FLOOR = 1e-7

_CONFIG_FILE = "config.json"
_PREFIX = "wav2vec2."  # in checkpoints saved with a head
_PARTS = ("feature_extractor.", "feature_projection.", "encoder.")
# Positional convolution, stored as direction and magnitude: current names and older ones.
_LEGACY_NAMES = {
    "encoder.pos_conv_embed.conv.parametrizations.weight.original0": (
        "encoder.pos_conv_embed.conv.weight_g"
    ),
    "encoder.pos_conv_embed.conv.parametrizations.weight.original1": (
        "encoder.pos_conv_embed.conv.weight_v"
    ),
}


def normalize_loudness(wave_N: np.ndarray, meter: LoudnessMeter) -> np.ndarray:
    """Normalise speech to -23 LUFS (integrated, BS.1770).

    Args:
        wave_N: float32 [N], at least 0.4 s.
        meter: Measures the loudness at the wave's sample rate.

    Returns:
        float64 [N]: wave * 10^((-23 - loudness) / 20); the input itself if the loudness is beyond
        +-100, that is, for silence.
    """
    loudness = meter.measure(wave_N)
    if abs(loudness) > _NO_LOUDNESS:
        return wave_N
    return wave_N * np.float64(10.0 ** ((_TARGET_LUFS - loudness) / 20.0))


def unit_variance(wave_N: np.ndarray) -> np.ndarray:
    """Compute (wave - mean) / sqrt(variance + 1e-7), [N], in float32."""
    wave_N = wave_N.astype(np.float32)
    return (wave_N - wave_N.mean()) / np.sqrt(wave_N.var() + _VARIANCE_FLOOR)


def audio_windows(embeddings: Tensor, start: int, stop: int, window: int = 5) -> Tensor:
    """Extract each frame's temporal neighbourhood, the DiT's input.

    Args:
        embeddings: [L, layers, C].
        start: First frame, >= 0.
        stop: Frame after the last, <= L.
        window: Odd number of frames; entry j of frame f is frame clamp(f + j - window // 2).

    Returns:
        [stop - start, window, layers, C]; at both ends of ``embeddings`` the outermost frame is
        repeated.
    """
    frames = torch.arange(start, stop, device=embeddings.device)[:, None]
    offsets = torch.arange(window, device=embeddings.device) - window // 2
    return embeddings[(frames + offsets).clamp_(0, len(embeddings) - 1)]


class AudioEncoder:
    """wav2vec2 with one output per video frame and layer.

    Attributes:
        layers: Transformer layers, all of which are returned.
        width: Channels of each layer.
        sample_rate: Samples per second of the input.
        device: Device of the network.
        dtype: Dtype of the computation.
    """

    def __init__(self, network: Wav2Vec2) -> None:
        """Take a network with weights, on its device; see `from_folder`, `random`."""
        config = network.config
        self.sample_rate, self.layers, self.width = config.sample_rate, config.layers, config.width
        self._meter = LoudnessMeter(config.sample_rate)
        self._network = network.eval().requires_grad_(False)
        weight = next(network.parameters())
        self.device, self.dtype = weight.device, weight.dtype

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        *,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load a wav2vec2 folder as published on the Hugging Face hub; no network is used.

        Args:
            path: Folder with ``config.json`` and ``model.safetensors`` or ``pytorch_model.bin``.
                Names may carry the prefix ``wav2vec2.``; weights outside the network itself
                (pre-training and recognition heads, mask embedding) are ignored.
            device: Device to load it to.
            dtype: Dtype to convert the weights to; published: float32.

        Raises:
            UserError: A file is missing, damaged, or does not fit; the message names it.
        """
        with open_weights(path) as files:
            network, key_map, ignore = wav2vec2_on_meta(path, files)
            load_module(network, files, dtype=dtype, device=device, key_map=key_map, ignore=ignore)
        network.fold_weight_norm()
        return cls(network)

    @classmethod
    def random(cls, config: AudioEncoderConfig, seed: int, device: torch.device | str) -> Self:
        """Create an untrained encoder of that shape with deterministic random float32 weights."""
        with torch.device("meta"):
            network = Wav2Vec2(config)
        random_module(network, seed=seed, dtype=torch.float32, device=device)
        return cls(network)

    def embed(self, wave_N: np.ndarray | Tensor, *, fps: float | Fraction = 25) -> Tensor:
        """Compute features of every video frame that a piece of speech covers.

        Args:
            wave_N: Mono samples in about [-1, 1] at ``sample_rate``, at least 0.4 s.
            fps: Video frames per second; the published DiT was trained with 25.

        Returns:
            [L, layers, C] with L = int(N / sample_rate * fps), on the encoder's device and dtype.

        Raises:
            UserError: The piece is too short or not mono.
        """
        samples_N = as_samples(wave_N)
        seconds = len(samples_N) / self.sample_rate
        frames = int(seconds * fps)
        if seconds < GATE_SECONDS or frames < 1:
            raise UserError(
                f"audio: {seconds:.2f} s is too short, loudness needs {GATE_SECONDS} s; "
                "pad it with silence"
            )
        values_N = unit_variance(normalize_loudness(samples_N, self._meter))
        with torch.no_grad():
            return self.hidden_states(interpolate(self.conv_features(values_N), frames))

    def conv_features(self, values_N: np.ndarray) -> Tensor:
        """Compute convolutional features [1, C, T] of normalised float32 samples [N]."""
        values_1N = torch.from_numpy(values_N)[None].to(self.device, self.dtype)
        with full_fp32(values_1N):
            return self._network.feature_extractor(values_1N)

    def hidden_states(self, features_1LC: Tensor) -> Tensor:
        """Return all transformer layers' outputs, [L, layers, width], but no input embedding."""
        with full_fp32(features_1LC):
            outputs = self._network(features_1LC)
        return torch.stack([output_1LC[0] for output_1LC in outputs], dim=1)


class AudioStream:
    """The most recent seconds of speech that arrives in pieces.

    The encoder's input has constant length, initially filled with silence, so a frame's features
    depend on the speech before it, but not on how that was split before the window.
    """

    def __init__(
        self,
        encoder: AudioEncoder,
        fps: float | Fraction = 25,
        seconds: int = 8,
        frames: int = 33,
    ) -> None:
        """Start with silence.

        Args:
            encoder: Computes features of the window.
            fps: Video frames per second.
            seconds: Length of the window.
            frames: How many of the newest frames `push` returns.

        Raises:
            UserError: The window holds fewer frames.
        """
        if int(seconds * fps) < frames:
            raise UserError(
                f"--fps {fps}: {seconds} s of audio hold {int(seconds * fps)} frames, "
                f"a chunk needs {frames}; choose at least {frames / seconds:.1f}"
            )
        self._encoder = encoder
        self._fps = fps
        self._frames = frames
        self._window_N = np.zeros(seconds * encoder.sample_rate, dtype=np.float32)

    def push(self, samples_N: np.ndarray | Tensor) -> Tensor:
        """Append speech and encode the window.

        Args:
            samples_N: Any number of mono samples at the encoder's rate.

        Returns:
            [frames, 5, layers, C], the newest frames; at the end of the window the last frame
            replaces those not yet known.

        Raises:
            UserError: The samples are not mono.
        """
        joined = np.concatenate((self._window_N, as_samples(samples_N)))
        self._window_N = joined[len(joined) - len(self._window_N) :].copy()
        embeddings = self._encoder.embed(self._window_N, fps=self._fps)
        return audio_windows(embeddings, len(embeddings) - self._frames, len(embeddings))


def interpolate(features_1CT: Tensor, frames: int) -> Tensor:
    """Interpolate features [1, C, T] to the video's frames, [1, frames, C]; linear, end to end."""
    resampled = functional.interpolate(features_1CT, size=frames, mode="linear", align_corners=True)
    return resampled.transpose(1, 2)


def as_samples(samples: ArrayLike | Tensor) -> NDArray[np.float32]:
    """Convert audio samples to float32 [N] in -1..1.

    Raises:
        UserError: They are not one-dimensional, not float or int16, or contain NaN or Inf.
    """
    if isinstance(samples, Tensor):
        samples = samples.detach().cpu()
        array = (samples.float() if samples.is_floating_point() else samples).numpy()
    else:
        array = np.asarray(samples)
    if array.ndim != 1:
        raise UserError(
            f"audio of shape {list(array.shape)}: expected mono samples [N]; mix them down"
        )
    if array.size == 0:
        return np.zeros(0, np.float32)
    if array.dtype == np.int16:
        return array.astype(np.float32) / np.float32(32768)
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"audio of type {array.dtype}: give float samples in -1..1, or int16")
    with np.errstate(over="ignore"):
        single = array.astype(np.float32)
    if not np.isfinite(single).all():
        raise UserError("audio with NaN or Inf: clean the samples first")
    return single


def wav2vec2_on_meta(
    folder: str | Path, files: TensorFiles
) -> tuple[Wav2Vec2, dict[str, Slot], tuple[str, ...]]:
    """Build the network that a folder's ``config.json`` describes, without weights.

    Args:
        folder: The folder.
        files: Its open weights. Older ones hold the network under a prefix and under other names
            of the weight norm, along with heads that are not needed.

    Returns:
        The network, its key map, and prefixes of keys that it does not need.

    Raises:
        UserError: The configuration is missing or invalid.
    """
    path = Path(folder) / _CONFIG_FILE
    kind = read_config(path).get("model_type")
    if kind != "wav2vec2":
        raise UserError(f"{path}: model_type is {kind!r}; give the folder of a wav2vec2 model")
    config = AudioEncoderConfig.from_json(path)  # types and ranges, before anything is built
    with torch.device("meta"):
        network = Wav2Vec2(config)
        network.split_weight_norm()
    stored = set(files.shapes)
    prefix = _PREFIX if any(key.startswith(_PREFIX) for key in stored) else ""
    key_map = {}
    for name, _ in network.named_parameters():
        legacy = prefix + _LEGACY_NAMES.get(name, name)
        key_map[legacy if legacy in stored else prefix + name] = Slot(name)
    own = tuple(prefix + part for part in _PARTS)
    return network, key_map, tuple(key for key in stored if not key.startswith(own))
