"""Trims a model that was only ever given zeros for prompt and picture.

Its response to them is constant, so the two large matrices involved become a bias, and the 512 rows
of text and 257 of image, which are all equal, become one each: attention over equal keys returns
their value. The flow stays the same up to rounding; a 12 MB file becomes one of 7 MB.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...own import ENTRY, OwnModel

WIDTH = 16
"""Width of the remaining zeros."""
_IMAGE, _TEXT = "img_emb.proj", "text_embedding.0"


def trim(
    weights: Mapping[str, Tensor], config: Mapping[str, Any], own: OwnModel
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Fold zero inputs into biases.

    Args:
        weights: Weights of the transformer, by their published names.
        config: Contents of ``config.json``.
        own: Which inputs are zeros.

    Returns:
        The weights in float32 and the configuration without what is folded; what is already small
        is unchanged.
    """
    kept = {key: value.float() for key, value in weights.items()}
    said = dict(config)
    text, first = f"{_TEXT}.weight", f"{_IMAGE}.1.weight"
    if own.prompt_zeros and kept[text].shape[1] > WIDTH:
        kept[text] = torch.zeros(len(kept[text]), WIDTH)
        said |= {"text_dim": WIDTH, "text_len": 1, ENTRY: {**said[ENTRY], "prompt_zeros": 1}}
    if own.image_zeros and kept[first].shape[1] > WIDTH:
        norm, last = f"{_IMAGE}.0", f"{_IMAGE}.3"
        # The norm of zeros is its bias.
        hidden = kept[first].double() @ kept[f"{norm}.bias"].double()
        hidden = torch.nn.functional.gelu(hidden + kept[f"{_IMAGE}.1.bias"].double())
        constant = kept[f"{last}.weight"].double() @ hidden + kept[f"{last}.bias"].double()
        kept |= {
            f"{norm}.weight": torch.ones(WIDTH),
            f"{norm}.bias": torch.zeros(WIDTH),
            first: torch.zeros(WIDTH, WIDTH),
            f"{_IMAGE}.1.bias": torch.zeros(WIDTH),
            f"{last}.weight": torch.zeros(len(constant), WIDTH),
            f"{last}.bias": constant.float(),
        }
        said |= {"image_dim": WIDTH, "image_len": 1}
    return kept, said
