"""The avatar file: all that the model needs to know of one portrait and prompt.

A safetensors file with the prompt embedding, the image features, the conditioning latents and the
fitted portrait, so that generation needs neither the text nor the image encoder.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from livetalk_kernels.errors import UserError
from livetalk_kernels.lines import list_keys
from livetalk_kernels.outputs import new_file

from .config import LATENT_FRAMES

FORMAT = "livetalk-avatar-1"
_TENSORS = ("context", "clip_fea", "condition", "portrait")
_TEXTS = ("model", "prompt", "note")
LATENT_CHANNELS = 16


@dataclass(frozen=True, kw_only=True)
class Avatar:
    """One person, ready to talk.

    Attributes:
        context: Prompt embedding, float [L, 4096], L <= 512.
        clip_fea: Image features, float [1, 257, 1280].
        condition: Normalised latents of the portrait followed by grey, float [16, T, H/8, W/8].
            Its first frame is the portrait alone and starts the first chunk.
        portrait: The fitted picture, uint8 [3, H, W]; the colour reference.
        model: Fingerprint of the model that made it (`Preparer.fingerprint`).
        prompt: The text behind ``context``; empty if unknown.
        note: How the embeddings were made, when not by the published encoders.
        warnings: What the user should know of the portrait, a line each; not in the file.
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
        """Write the avatar file, with its folder; at once or not at all.

        Raises:
            UserError: The folder cannot be made or written, or the disk is full.
        """
        with new_file(Path(path)) as file:
            file.write(self.to_bytes())

    def to_bytes(self) -> bytes:
        """The contents of an avatar file."""
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in _TENSORS}
        return save(tensors, {"format": FORMAT, **{name: getattr(self, name) for name in _TEXTS}})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """What `to_bytes` made, on another rank; it is not checked again."""
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
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such avatar file; make one with 'livetalk prepare'")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                keys = set(file.keys())
                if metadata.get("format") != FORMAT or not keys.issuperset(_TENSORS):
                    raise UserError(
                        f"{path}: not an avatar file of this version; "
                        "make one with 'livetalk prepare'"
                    )
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{path}: damaged ({error}); make it again with 'livetalk prepare'"
            ) from None
        text = {name: metadata.get(name, "") for name in _TEXTS}
        avatar = cls(**tensors, **text)
        avatar._check(path)
        return avatar

    def _check(self, path: Path) -> None:
        """Refuse shapes that no `prepare` writes."""
        shapes = {name: list(getattr(self, name).shape) for name in _TENSORS}
        picture, latent = shapes["portrait"], shapes["condition"]
        fits = (
            [len(shape) for shape in shapes.values()] == [2, 3, 4, 3]
            and self.portrait.dtype == torch.uint8
            and picture[0] == 3
            and latent[:2] == [LATENT_CHANNELS, LATENT_FRAMES]
            and picture[1:] == [8 * side for side in latent[2:]]
            and all(side > 0 and side % 16 == 0 for side in picture[1:])
        )
        if not fits:
            raise UserError(
                f"{path}: tensors do not fit together ({json.dumps(shapes)}); "
                "make it again with 'livetalk prepare'"
            )
        for name in ("context", "clip_fea", "condition"):
            tensor = getattr(self, name)
            if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
                raise UserError(
                    f"{path}: {name} holds something else than finite floats; "
                    "make it again with 'livetalk prepare'"
                )


def load_embedding(path: str | Path, name: str) -> Tensor:
    """One precomputed embedding from a safetensors file.

    Args:
        path: The file.
        name: Name of the tensor in it.

    Returns:
        The tensor, float and finite.

    Raises:
        UserError: The file or the tensor is missing, damaged, or not of finite floats.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a safetensors file with {name}")
    try:
        with safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            if name not in names:
                found = list_keys(names) or "nothing"
                raise UserError(f"{path}: holds {found}, but {name} is needed; rename the tensor")
            tensor: Tensor = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}); write it again"
        ) from None
    if not tensor.is_floating_point():
        raise UserError(
            f"{path}: {name} is {tensor.dtype}, but floats are needed; compute it again"
        )
    if not torch.isfinite(tensor).all():
        raise UserError(f"{path}: {name} holds NaN or Inf; compute it again")
    return tensor
