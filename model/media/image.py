"""Pictures in: a portrait of any common format as RGB, and its crop to the frame size."""

import math
import struct
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import check_input

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""Pillow's names of the formats that are read; none of them runs another program."""
MIN_SIDE = 16
"""Pixels of the shorter side, at least."""
MAX_PIXELS = 80_000_000
"""Width times height, at most; checked in the header, before anything is decoded."""
MAX_ASPECT = 20
"""Longer side by shorter side, at most, so that scaling to cover a frame stays affordable."""

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error)
"""What Pillow's decoders raise on damaged data."""


def load_portrait(path: Path | str) -> Image.Image:
    """Read a picture as 8-bit RGB, upright.

    The orientation in EXIF is applied, transparency is laid on white, palettes are expanded, 16-bit
    grey is scaled to 8 bits, an animation gives its first frame. Colour profiles are ignored.

    Args:
        path: PNG, JPEG, WebP, BMP or GIF.

    Returns:
        A Pillow image of mode RGB.

    Raises:
        UserError: The file is missing, a folder, empty or unreadable, not a picture, damaged,
            smaller than `MIN_SIDE`, larger than `MAX_PIXELS`, longer than `MAX_ASPECT`.
    """
    path = check_input(path, "picture")
    with warnings.catch_warnings():
        # About sizes below our own limit's error, and about EXIF fields that are not needed here.
        warnings.simplefilter("ignore")
        try:
            with Image.open(path, formats=FORMATS) as image:
                check_picture(path, image.width, image.height)
                image.load()
                return to_rgb(ImageOps.exif_transpose(image))
        except UserError:
            raise
        except Image.DecompressionBombError:
            raise _too_large(path) from None
        except UnidentifiedImageError:
            raise UserError(
                f"{path}: not a picture that can be read; use PNG, JPEG, WebP, BMP or GIF"
            ) from None
        except _BROKEN as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{path}: the picture is damaged ({reason}); export it again") from None


def fit_portrait(image: Image.Image, size: tuple[int, int]) -> torch.Tensor:
    """Scale a picture to cover the frame and cut out its centre, as the published model does.

    With s = max(H / h, W / w) the picture becomes ceil(h s) x ceil(w s) by Pillow's bilinear
    filter; the crop starts at round((ceil(h s) - H) / 2), halves to even, and likewise for W.
    Source: SoulX-FlashTalk, commit 688982e.

    Args:
        image: Mode RGB, w x h pixels.
        size: Frame size (H, W), height first.

    Returns:
        Uint8 [3, H, W].
    """
    height, width = size
    # In floating point, as published: now and then a row more than the exact quotient needs.
    scale = max(height / image.height, width / image.width)
    rows, columns = math.ceil(image.height * scale), math.ceil(image.width * scale)
    scaled_HWC = np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR))
    top, left = round((rows - height) / 2), round((columns - width) / 2)
    crop_HWC = scaled_HWC[top : top + height, left : left + width]
    return torch.from_numpy(crop_HWC.transpose(2, 0, 1).copy())


def check_picture(path: Path | str, width: int, height: int) -> None:
    """Check the size of a picture in pixels; ``path`` is what to call it in an error.

    Raises:
        UserError: Smaller than `MIN_SIDE`, larger than `MAX_PIXELS`, or longer than `MAX_ASPECT`.
    """
    if width * height > MAX_PIXELS:
        raise _too_large(path, f" ({width}x{height})")
    if min(width, height) < MIN_SIDE:
        raise UserError(
            f"{path}: {width}x{height} pixels are too few; both sides need {MIN_SIDE} or more, "
            "better 512"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UserError(f"{path}: {width}x{height} pixels are no portrait; crop it to the head")


def _too_large(path: Path | str, found: str = "") -> UserError:
    limit = MAX_PIXELS // 1_000_000
    return UserError(f"{path}: more than {limit} megapixels{found}; scale the picture down")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode that the formats above have to RGB."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)  # 65535 = 257 * 255 is white
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")
