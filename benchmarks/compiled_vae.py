"""The published schedule of the VAE by torch.compile, in channels-last memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from livetalk_model.vae import KERNEL, VAE
from livetalk_model.vae_layers import StreamCache

Compiler = str | Callable[..., Any]
"""What ``torch.compile`` takes as ``backend``."""


class CompiledCoder(nn.Module):
    """The VAE's encoder or decoder, compiled as one graph for all pieces but a stream's first.

    Missing history is zeros, so the pieces after the first are given that, which the published
    schedule would join to them: the shapes then repeat from there on, as does the number of
    pieces. The first piece, one frame of a video, runs as it is.
    """

    def __init__(self, coder: nn.Module, compiler: Compiler) -> None:
        """Compile at the second piece; ``compiler``: torch.compile's ``backend``."""
        super().__init__()
        self.coder = coder
        self._compiled = torch.compile(coder, dynamic=False, backend=compiler)
        self._history: dict[str, torch.Size] = {}

    def forward(self, x_BCTHW: Tensor, cache: StreamCache) -> Tensor:
        """See `vae.Encoder` and `vae.Decoder`."""
        if cache.pieces == 0:
            first: Tensor = self.coder(x_BCTHW, cache)
            return first
        if not self._history:
            trial = StreamCache(cache.frames, KERNEL[0], halo=cache.halo)
            for _ in range(2):
                self.coder(x_BCTHW, trial)
            self._history = {name: trial.frames[name].shape for name in sorted(trial.frames)}
        frames = {
            name: _whole(cache.frames.get(name), x_BCTHW, shape)
            for name, shape in self._history.items()
        }
        own = StreamCache(frames, KERNEL[0], halo=cache.halo)
        y: Tensor = self._compiled(x_BCTHW, own)
        cache.frames = own.frames
        return y


def _whole(frames: Tensor | None, like: Tensor, shape: torch.Size) -> Tensor:
    """A history of its full length, zeros first."""
    if frames is None:
        frames = like.new_empty(*shape[:2], 0, *shape[3:])
    missing = shape[2] - frames.shape[2]
    whole = torch.nn.functional.pad(frames, (0, 0, 0, 0, missing, 0))
    return whole.contiguous(memory_format=torch.channels_last_3d)


def compile_vae(vae: VAE, *, compiler: Compiler = "inductor") -> None:
    """Compile a VAE; its weights are channels-last, as the compiler lays out all else."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in vae.parameters():
        if weight.dim() in formats:
            weight.data = weight.data.contiguous(memory_format=formats[weight.dim()])
    for name in ("encoder", "decoder"):
        setattr(vae, name, CompiledCoder(getattr(vae, name), compiler))
