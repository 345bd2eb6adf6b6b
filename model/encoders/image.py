"""Portrait to image embedding: CLIP's vision tower of the published checkpoint, or a substitute.

CLIP: Radford et al., 2021; ViT-H/14 with an XLM-RoBERTa text tower (which is not used here).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor
from torch.nn import functional

from livetalk_kernels.errors import UserError

from ..weights.fill import Slot, TensorFiles, load_module, open_weights
from ..weights.tensor_files import TensorSpec

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

_Index = tuple[int | slice, ...]

# CLIP's pixel statistics, for values in [0, 1].
_PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
_PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
_PATCH = 14  # pixels per side, in the substitute

_REMEDY = "give the published CLIP weights"
_BLOCKS = "visual.transformer."

_TOWER_KEYS = {
    "cls_embedding": "embeddings.class_embedding",
    "pos_embedding": "embeddings.position_embedding.weight",
    "patch_embedding.weight": "embeddings.patch_embedding.weight",
    "pre_norm.weight": "pre_layrnorm.weight",
    "pre_norm.bias": "pre_layrnorm.bias",
    "post_norm.weight": "post_layernorm.weight",
    "post_norm.bias": "post_layernorm.bias",
}
_BLOCK_KEYS = {
    "norm1": "layer_norm1",
    "attn.to_qkv[q]": "self_attn.q_proj",
    "attn.to_qkv[k]": "self_attn.k_proj",
    "attn.to_qkv[v]": "self_attn.v_proj",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}


def clip_pixels(image: Tensor, size: int = 224) -> Tensor:
    """Convert a portrait to CLIP's input.

    Args:
        image: [3, H, W] in [-1, 1], any float dtype.
        size: Rows and columns of CLIP's input.

    Returns:
        float32 [1, 3, size, size]: resized (bicubic, aspect not kept, not smoothed), then
        (pixel / 2 + 1/2 - mean) / std per channel.

    Raises:
        UserError: The image has another shape.
    """
    if image.ndim != 3 or image.shape[0] != 3:
        raise UserError(f"image: expected [3, H, W], got {list(image.shape)}")
    resized = functional.interpolate(
        image.float()[None], size=(size, size), mode="bicubic", align_corners=False
    )
    mean, std = (resized.new_tensor(v).view(1, 3, 1, 1) for v in (_PIXEL_MEAN, _PIXEL_STD))
    return (resized * 0.5 + 0.5 - mean) / std


class ImageEncoder:
    """CLIP vision tower without its last block and final norm.

    Attributes:
        width: Channels per token (1280 for ViT-H/14).
        device: Device of the network.
        dtype: Dtype of the computation.
    """

    def __init__(self, network: CLIPVisionModel) -> None:
        """Take a ready ``transformers.CLIPVisionModel`` with one block fewer than published."""
        self._network = network.eval().requires_grad_(False)
        self._size: int = network.config.image_size
        self.width: int = network.config.hidden_size
        weight = next(network.parameters())
        self.device, self.dtype = weight.device, weight.dtype

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        num_heads: int = 16,
    ) -> Self:
        """Load the vision tower of the published CLIP checkpoint.

        Args:
            path: ``models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth`` or one with the
                same names. The text tower, the head and the last block are ignored; sizes are
                read from the shapes.
            device: Device to load it to.
            dtype: Dtype to convert the weights to; by default float16 on a GPU as published,
                float32 on a CPU.
            num_heads: Attention heads, which no shape reveals; 16 as published.

        Raises:
            UserError: The file is missing, damaged, or does not fit.
        """
        if dtype is None:
            dtype = torch.float32 if torch.device(device).type == "cpu" else torch.float16
        with open_weights(path) as files:
            tower, key_map, ignore = vision_on_meta(files, num_heads)
            load_module(
                tower,
                split_tensors(files),
                dtype=dtype,
                device=device,
                key_map=key_map,
                ignore=ignore,
            )
        # Not stored in checkpoints: row indices of the position table.
        rows = torch.arange(tower.embeddings.num_positions, device=device)
        tower.embeddings.position_ids = rows[None]
        return cls(tower)

    def encode(self, image: Tensor) -> Tensor:
        """Embed a portrait.

        Args:
            image: [3, H, W] in [-1, 1].

        Returns:
            [1, 257, width] in the encoder's dtype: class token, then patches row by row.

        Raises:
            UserError: The image has another shape.
        """
        pixels = clip_pixels(image.to(self.device), self._size).to(self.dtype)
        with torch.no_grad():
            return self._network(pixels).last_hidden_state


class RandomImageEncoder:
    """Substitute for presets without a checkpoint: one random, untrained patch embedding.

    Attributes:
        width: Channels per token.
    """

    def __init__(
        self, width: int = 1280, *, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        """Draw the weights on the CPU, so that every device gets the same ones."""
        generator = torch.Generator().manual_seed(seed)
        kernel = torch.randn(width, 3, _PATCH, _PATCH, generator=generator)
        self._kernel = (kernel / (3 * _PATCH * _PATCH) ** 0.5).to(device)
        self._class_token = torch.randn(1, 1, width, generator=generator).to(device)
        self.width = width

    def encode(self, image: Tensor) -> Tensor:
        """Embed a portrait [3, H, W] in [-1, 1] as float32 [1, 257, width]."""
        pixels = clip_pixels(image.to(self._kernel.device))
        patches = functional.conv2d(pixels, self._kernel, stride=_PATCH)
        return torch.cat((self._class_token, patches.flatten(2).transpose(1, 2)), dim=1)


def vision_on_meta(
    files: TensorFiles, num_heads: int
) -> tuple[CLIPVisionModel, dict[str, Slot], tuple[str, ...]]:
    """Build the tower that a checkpoint's shapes describe, without weights.

    Returns:
        The tower without its last block; its key map, for `split_tensors` of the files; prefixes
        of keys that it does not need.

    Raises:
        UserError: A tensor that determines a size is missing, or the heads do not divide the width.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModel

    def shape(key: str, dims: int) -> tuple[int, ...]:
        sizes = files.shapes[key][0] if key in files.shapes else ()
        if len(sizes) != dims or 0 in sizes:
            raise UserError(f"{files.name}: no {dims}-dimensional tensor {key}; {_REMEDY}")
        return sizes

    dim, _, patch, _ = shape("visual.patch_embedding.weight", 4)
    tokens = shape("visual.pos_embedding", 3)[1]
    grid = math.isqrt(tokens - 1)
    blocks = {key.split(".")[2] for key in files.shapes if key.startswith(_BLOCKS)}
    if dim % num_heads or grid * grid != tokens - 1 or len(blocks) <= 1:
        raise UserError(
            f"{files.name}: width {dim}, {num_heads} heads, {tokens} tokens and {len(blocks)} "
            f"blocks make no vision tower; {_REMEDY}"
        )
    last = len(blocks) - 1
    config = CLIPVisionConfig(
        hidden_size=dim,
        intermediate_size=shape(f"{_BLOCKS}0.mlp.0.weight", 2)[0],
        num_hidden_layers=last,
        num_attention_heads=num_heads,
        image_size=grid * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        network = CLIPVisionModel(config)
    # transformers 4 and early 5 have one more wrapper around the tower.
    tower = getattr(network, "vision_model", network)
    key_map = {f"visual.{key}": Slot(name) for key, name in _TOWER_KEYS.items()}
    for layer in range(last):
        for key, name in _BLOCK_KEYS.items():
            module, _, part = key.partition("[")
            for kind in ("weight", "bias"):
                stored = f"{_BLOCKS}{layer}.{module}.{kind}" + (f"[{part}" if part else "")
                key_map[stored] = Slot(f"encoder.layers.{layer}.{name}.{kind}")
    return tower, key_map, ("textual.", "log_scale", "visual.head", f"{_BLOCKS}{last}.")


def split_tensors(files: TensorFiles) -> TensorFiles:
    """View a CLIP checkpoint with fused q, k, v as three tensors; nothing is copied.

    ``...to_qkv.weight`` becomes ``...to_qkv.weight[q]``, ``[k]`` and ``[v]``; the class and
    position embeddings lose their leading dimensions of 1.
    """
    return TensorFiles(files.name, [_SplitTensors(files)])


class _SplitTensors:
    """One part of ``TensorFiles``: indexed views of another's tensors."""

    def __init__(self, files: TensorFiles) -> None:
        self.path = files.name
        self.shapes: dict[str, TensorSpec] = {}
        self._files = files
        self._views: dict[str, tuple[str, _Index]] = {}
        for key, (shape, dtype) in files.shapes.items():
            for part, index in _views(key, shape).items():
                view = torch.empty(shape, device="meta")[index]
                self.shapes[key + part] = (tuple(view.shape), dtype)
                self._views[key + part] = (key, index)

    def read(self, key: str) -> Tensor:
        source, index = self._views[key]
        return self._files.read(source)[index]

    def close(self) -> None:
        """Leave the files open for whoever opened them."""


def _views(key: str, shape: tuple[int, ...]) -> dict[str, _Index]:
    """Map suffixes of a key to parts of its tensor."""
    if ".attn.to_qkv." in key and shape and shape[0] % 3 == 0:
        third = shape[0] // 3
        return {f"[{n}]": (slice(i * third, (i + 1) * third),) for i, n in enumerate("qkv")}
    leading = {"visual.cls_embedding": 2, "visual.pos_embedding": 1}.get(key, 0)
    if len(shape) > leading and shape[:leading] == (1,) * leading:
        return {"": (0,) * leading}
    return {"": ()}
