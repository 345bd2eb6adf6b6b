"""Features on disk, next to their clips: computed once for all ranks, runs and seeds.

``features/KEY/`` in the clips' folder has a file per clip. The key is a digest of the networks'
weights, so other networks fill another folder; a file also records its clip's size and time of
modification, and is replaced if the clip is.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from livetalk_kernels.inputs import is_file
from livetalk_kernels.outputs import new_file

from ...weights.manifest import sha256_of
from ...weights.safetensors_file import SafetensorsFile, write_safetensors
from ..data.clips import Clips
from .features import Features

FOLDER = "features"
VERSION = 1
"""Part of the key: raise it whenever the same networks and clips give other features."""
_CLIP = "clip"
_CURE = "remove it; the training computes it again"


def features_key(weights: Sequence[Path], dtype: torch.dtype, image: tuple[int, int]) -> str:
    """Digest all that features depend on, except the clip.

    Args:
        weights: Files of the networks that compute them.
        dtype: Dtype of the VAE's intermediates.
        image: Rows and columns of image features, which may be zeros that no file tells.

    Raises:
        UserError: A file cannot be read.
    """
    parts = [str(VERSION), str(dtype), str(image), *map(sha256_of, weights)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


class FeatureFiles:
    """The features of clips, read from disk or computed and written there."""

    def __init__(self, clips: Clips, key: str, compute: Callable[[int], Features]) -> None:
        """Read nothing yet.

        Args:
            clips: The clips.
            key: See `features_key`.
            compute: Computes a clip's features.
        """
        self._clips, self._compute = clips, compute
        self._folder = clips.folder / FOLDER / key

    def read(self, clip: int) -> Features:
        """Return a clip's features; the first call computes and writes them.

        Raises:
            UserError: The file is damaged, or cannot be written.
        """
        path = self._folder / self._clips.index.clips[clip].file
        stamp = self._stamp(clip)
        if is_file(path):
            kept = SafetensorsFile(path, "features", cure=_CURE, missing=_CURE)
            if kept.metadata.get(_CLIP) == stamp:
                return Features(**{name: kept.read(name) for name in kept.shapes})
        features = self._compute(clip)
        tensors = [
            (name, (tuple(value.shape), value.dtype), lambda value=value: value)
            for name, value in vars(features).items()
        ]
        with new_file(path) as file:
            write_safetensors(file, tensors, {_CLIP: stamp})
        return features

    def _stamp(self, clip: int) -> str:
        state = (self._clips.folder / self._clips.index.clips[clip].file).stat()
        return f"{state.st_size} {state.st_mtime_ns}"
