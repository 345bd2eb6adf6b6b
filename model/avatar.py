"""The avatar file: everything that the model needs to know about one portrait and prompt.

A safetensors file with the prompt embedding, the image features, the conditioning latents and the
fitted portrait, so that generation needs neither the text nor the image encoder.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from livetalk_kernels.errors import UserError
from livetalk_kernels.lines import list_keys
from livetalk_kernels.outputs import new_file
from livetalk_kernels.precision import dtype_name

from .config import CHUNK_FRAMES, LATENT_FRAMES
from .weights.safetensors_file import FLOATS, SafetensorsFile, TensorSpec

FORMAT = "livetalk-avatar-1"
_TENSORS = ("context", "clip_fea", "condition", "portrait")
_TEXTS = ("model", "prompt", "note")
LATENT_CHANNELS = 16
_AGAIN = "make it again with 'livetalk prepare'"


def before_grey(picture_BCTHW: Tensor) -> Tensor:
    """Append grey frames to a picture for the rest of a chunk, the input of `Avatar.condition`.

    Args:
        picture_BCTHW: [B, 3, 1, H, W] in -1..1.

    Returns:
        [B, 3, 33, H, W].
    """
    grey = torch.zeros_like(picture_BCTHW).expand(-1, -1, CHUNK_FRAMES - 1, -1, -1)
    return torch.cat((picture_BCTHW, grey), dim=2)


@dataclass(frozen=True, kw_only=True)
class Avatar:
    """One person, ready to be animated.

    Attributes:
        context: Prompt embedding, float [L, 4096], L <= 512.
        clip_fea: Image features, float [1, 257, 1280].
        condition: Normalised latents of the portrait followed by grey, float [16, T, H/8, W/8].
            Its first frame is the portrait alone and starts the first chunk.
        portrait: The fitted picture, uint8 [3, H, W]; the colour reference.
        model: Fingerprint of the model that made it (`Preparer.fingerprint`).
        prompt: The text that ``context`` encodes; empty if unknown.
        note: How the embeddings were made, if not by the published encoders.
        warnings: What the user should know about the portrait, one line each; not in the file.
    """

    context: Tensor
    clip_fea: Tensor
    condition: Tensor
    portrait: Tensor
    model: str
    prompt: str = ""
    note: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.portrait.shape[1], self.portrait.shape[2]

    def save(self, path: str | Path) -> None:
        """Write the avatar file, and its folder; completely or not at all.

        Raises:
            UserError: The folder cannot be created or written to, or the disk is full.
        """
        with new_file(Path(path)) as file:
            file.write(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Serialise to the contents of an avatar file."""
        from safetensors.torch import save  # optional on a machine that only measures

        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in _TENSORS}
        return save(tensors, {"format": FORMAT, **{name: getattr(self, name) for name in _TEXTS}})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Deserialise the output of `to_bytes` on another rank, without checking it again."""
        from safetensors.torch import load

        tensors: dict[str, Any] = load(data)
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        return cls(**tensors, **{name: metadata[name] for name in _TEXTS})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read an avatar file.

        Raises:
            UserError: The file is missing, damaged, or not an avatar file.
        """
        make = "make one with 'livetalk prepare'"
        file = SafetensorsFile(Path(path), "avatar", cure=_AGAIN, missing=make)
        if file.metadata.get("format") != FORMAT or not file.shapes.keys() >= set(_TENSORS):
            raise UserError(f"{path}: not an avatar file of this version; {make}")
        _check_shapes(path, {name: file.shapes[name] for name in _TENSORS})
        tensors: dict[str, Any] = {name: _read(file, name, _AGAIN) for name in _TENSORS}
        texts: dict[str, Any] = {name: file.metadata.get(name, "") for name in _TEXTS}
        return cls(**tensors, **texts)


def _check_shapes(path: Path | str, specs: dict[str, TensorSpec]) -> None:
    """Reject shapes and dtypes that `prepare` never writes.

    Raises:
        UserError: There are any.
    """
    shapes = {name: list(shape) for name, (shape, _) in specs.items()}
    picture, latent = shapes["portrait"], shapes["condition"]
    fits = (
        [len(shape) for shape in shapes.values()] == [2, 3, 4, 3]
        and picture[0] == 3
        and latent[:2] == [LATENT_CHANNELS, LATENT_FRAMES]
        and picture[1:] == [8 * side for side in latent[2:]]
        and all(side > 0 and side % 16 == 0 for side in picture[1:])
        and specs["portrait"][1] == torch.uint8
    )
    if not fits:
        raise UserError(f"{path}: tensors do not fit together ({json.dumps(shapes)}); {_AGAIN}")


def load_embedding(path: str | Path, name: str) -> Tensor:
    """Read one precomputed embedding from a safetensors file.

    Args:
        path: The file.
        name: Name of the tensor in it.

    Returns:
        The tensor, float and finite.

    Raises:
        UserError: The file or the tensor is missing, damaged, or does not hold finite floats.
    """
    file = SafetensorsFile(
        Path(path),
        "embedding",
        cure="write it again",
        missing=f"give a safetensors file with {name}",
    )
    if name not in file.shapes:
        found = list_keys(sorted(file.shapes)) or "nothing"
        raise UserError(f"{path}: holds {found}, but {name} is needed; rename the tensor")
    return _read(file, name, "compute it again")


def _read(file: SafetensorsFile, name: str, cure: str) -> Tensor:
    """Read and copy a tensor: a picture, or finite floats.

    Raises:
        UserError: It has another dtype, or holds NaN or Inf.
    """
    dtype = file.shapes[name][1]
    if dtype not in (*FLOATS, torch.uint8) or (dtype == torch.uint8) != (name == "portrait"):
        raise UserError(
            f"{file.path}: {name} is {dtype_name(dtype)}, but floats of 16 bits or more are "
            f"needed; {cure} in bfloat16 or float32"
        )
    tensor = file.read(name).clone()
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise UserError(f"{file.path}: {name} holds NaN or Inf; {cure}")
    return tensor
