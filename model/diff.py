"""Measures how far two configurations of a model differ: per layer, per step and in the video.

Configuration ``b`` runs; whenever one of its layers is called, the same layer of ``a`` is called
with the same inputs, so that a layer's row shows its own error, not what it inherits. In addition,
both generate the same chunks freely.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from livetalk_kernels import KernelConfig
from livetalk_kernels.errors import UserError
from livetalk_kernels.ops.quantize import dequantize

from .avatar import Avatar
from .config import MOTION_FRAMES
from .dit import DiT
from .pipeline import Pipeline
from .quantize import PRECISIONS, Quantized
from .stream.chunk import Frames, StreamOptions

PARTS = ("self_attn", "cross_attn", "audio_cross_attn", "ffn")
SWITCHES: Mapping[str, bool] = {"yes": True, "no": False}
VAE_LATENTS = 3


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """One side of a comparison.

    Attributes:
        text: The text that it was parsed from.
        precision: ``exact`` or ``fp8``.
        dtype: ``auto``, ``fp32`` or ``bf16``.
        reuse: False for the published schedule.
        backend: Kernel backends.
    """

    text: str
    precision: str = "exact"
    dtype: str = "auto"
    reuse: bool = True
    backend: KernelConfig

    @classmethod
    def parse(cls, text: str, option: str) -> Self:
        """Parse ``precision=fp8,dtype=bf16,reuse=no,backend=cpu,add_norm=triton``, all optional.

        Args:
            text: The text.
            option: Name of the option that it came from, for messages.

        Raises:
            UserError: A part is not understood.
        """
        given: dict[str, Any] = {}
        backends = []
        for part in filter(None, (part.strip() for part in text.split(","))):
            key, equals, value = part.partition("=")
            if not equals:
                raise UserError(f"{option} {part}: write KEY=VALUE, for example precision=fp8")
            if key == "reuse" and value in SWITCHES:
                given[key] = SWITCHES[value]
            elif (key == "precision" and value in PRECISIONS) or key == "dtype":
                given[key] = value
            elif key in {"reuse", "precision"}:
                values = SWITCHES if key == "reuse" else PRECISIONS
                raise UserError(f"{option} {part}: {key} is {' or '.join(values)}")
            else:
                backends.append(value if key == "backend" else part)
        return cls(text=text or "default", backend=KernelConfig.from_sources(backends), **given)


@dataclass
class Error:
    """Error of ``a`` against ``b`` over any number of tensors.

    Attributes:
        calls: Tensors compared.
        relative: Relative L2 error over all of them.
        largest: Largest absolute error, as a multiple of ``b``'s RMS.
    """

    calls: int = 0
    largest: float = 0.0
    _error: float = field(default=0.0, repr=False)
    _size: float = field(default=0.0, repr=False)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Accumulate one pair of tensors of equal shape."""
        a, b = a.double(), b.double().to(a.device)
        difference = a - b
        rms = b.square().mean().sqrt().item()
        self.calls += 1
        self._error += difference.square().sum().item()
        self._size += b.square().sum().item()
        largest = difference.abs().max().item()
        self.largest = max(self.largest, largest / rms if rms else largest)

    @property
    def relative(self) -> float:
        """|a - b| / |b|."""
        return (self._error / self._size) ** 0.5 if self._size else self._error**0.5

    def as_dict(self) -> dict[str, float]:
        """Convert to plain values."""
        return {"calls": self.calls, "relative": self.relative, "largest": self.largest}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The result of a comparison.

    Attributes:
        layers: Name of a layer -> its own error, over the steps of the first chunk.
        steps: The whole transformer's error in each step of the first chunk, on equal inputs.
        vae: ``decode`` and ``encode`` -> error on equal inputs.
        psnr: PSNR of each chunk's frames, both sides running freely, dB; None for equal frames.
    """

    layers: Mapping[str, Error]
    steps: Sequence[Error]
    vae: Mapping[str, Error]
    psnr: Sequence[float | None]

    def worst(self, count: int) -> list[tuple[str, Error]]:
        """Return the layers with the largest errors, worst first."""
        return sorted(self.layers.items(), key=lambda item: -item[1].relative)[:count]

    def as_dict(self) -> dict[str, Any]:
        """Convert to plain values."""
        return {
            "layers": {name: error.as_dict() for name, error in self.layers.items()},
            "steps": [error.as_dict() for error in self.steps],
            "vae": {name: error.as_dict() for name, error in self.vae.items()},
            "psnr": list(self.psnr),
        }


def compare(
    a: Pipeline,
    b: Pipeline,
    avatar: Avatar,
    speech: Sequence[np.ndarray],
    options: StreamOptions,
) -> Difference:
    """Compare two pipelines with the same weights.

    Args:
        a: The pipeline under test.
        b: The baseline.
        avatar: Avatar to animate.
        speech: Float32 samples per chunk, 16 kHz mono, one chunk long each.
        options: Options of the stream.
    """
    layers: dict[str, Error] = {}
    steps: list[Error] = []
    psnr: list[float | None] = []
    with a.session(avatar, options=options) as session_a, b.session(avatar, options=options) as s_b:
        for index, samples in enumerate(speech):
            with _watching(a.dit, b.dit, layers, steps, active=index == 0):
                frames_b = list(s_b.push(samples))
            frames_a = list(session_a.push(samples))
            psnr.append(_psnr(np.concatenate(frames_a), np.concatenate(frames_b)))
    return Difference(layers=layers, steps=steps, vae=_vae(a, b, avatar), psnr=psnr)


@contextmanager
def _watching(
    a: DiT, b: DiT, layers: dict[str, Error], steps: list[Error], *, active: bool
) -> Iterator[None]:
    """While ``b`` runs, call every layer of ``a`` with the inputs of ``b``'s."""
    handles = []
    if active:
        for index, (block_a, block_b) in enumerate(zip(a.blocks, b.blocks, strict=True)):
            for part in PARTS:
                error = layers[f"blocks.{index}.{part}"] = Error()
                layer_a, layer_b = getattr(block_a, part), getattr(block_b, part)
                handles.append(_watch(layer_b, layer_a, a, b, error.add))
        handles.append(_watch(b, a, a, b, lambda x, y: _new(steps).add(x, y)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _new(errors: list[Error]) -> Error:
    errors.append(Error())
    return errors[-1]


def _watch(watched: nn.Module, other: nn.Module, a: DiT, b: DiT, add: Any) -> Any:
    def hook(module: nn.Module, args: Any, options: dict[str, Any], out: Any) -> None:
        def convert(value: Any) -> Any:
            if isinstance(value, Quantized):
                return value if a.fp8 else dequantize(*value, a.dtype)
            if isinstance(value, Tensor):
                low = value.is_floating_point() and value.dtype == b.dtype
                return value.to(a.device, a.dtype if low else value.dtype)
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                fields = {name: convert(part) for name, part in vars(value).items()}
                return dataclasses.replace(value, **fields)
            if isinstance(value, list | tuple):
                return type(value)(convert(part) for part in value)
            return value

        result = other(*map(convert, args), **{key: convert(v) for key, v in options.items()})
        first = [x[0] if isinstance(x, tuple) else x for x in (result, out)]
        add(*first)

    return watched.register_forward_hook(hook, with_kwargs=True)


def _vae(a: Pipeline, b: Pipeline, avatar: Avatar) -> dict[str, Error]:
    """Decode the portrait's first latents, and encode as many frames as continue a chunk."""
    errors = {"decode": Error(), "encode": Error()}
    with torch.inference_mode():
        latents = avatar.condition[None, :, :VAE_LATENTS].to(b.device, b.dtype)
        frames = b.vae.decode(latents)
        errors["decode"].add(a.vae.decode(latents.to(a.dtype)), frames)
        tail = frames[:, :, -MOTION_FRAMES:]
        errors["encode"].add(a.vae.encode(tail.to(a.dtype)), b.vae.encode(tail))
    return errors


def _psnr(a: Frames, b: Frames) -> float | None:
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return float(10 * np.log10(255**2 / error)) if error else None
