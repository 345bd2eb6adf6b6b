"""Reads a portrait in any common format as sRGB, and crops it to the frame size."""

import math
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Literal, Self

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import check_input

from .icc import ProfileError, to_srgb

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
"""Pillow's names of the supported formats; none of them runs another program."""
MIN_SIDE = 16
"""Minimum pixels of the shorter side."""
MAX_PIXELS = 80_000_000
"""Maximum width times height; checked in the header, before anything is decoded."""
MAX_ASPECT = 20
"""Maximum ratio of longer to shorter side, so that scaling to cover a frame stays affordable."""
MAX_BYTES = 1 << 28
"""Maximum bytes of the file; `MAX_PIXELS` as BMP take less."""
MAX_EXIF = 1 << 16
"""Maximum bytes of EXIF, as in the JPEG standard: when parsed, each of its entries may take as much
memory as the whole."""
MAX_SCANS = 200
"""Maximum scans of a progressive JPEG: each costs a pass over all pixels, and ten are usual."""
CUT = 0.2
"""Fraction of a picture that a crop may remove without a warning."""

Crop = Literal["centre", "top"] | tuple[int, int, int, int]
"""Part of a picture to keep: its centre, its top, or x, y, width and height in pixels."""

_GAMMA = 1 / 2.2
_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)  # sRGB's white, red, green, blue
_CICP_SRGB = bytes((1, 13, 0, 1))
_ORIENTATION = 0x0112
_TURNS: Mapping[int, Image.Transpose] = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)


@dataclass(frozen=True, kw_only=True)
class Portrait:
    """A decoded picture.

    Attributes:
        image: Mode RGB, in sRGB, upright.
        name: Its name in messages: its file.
        warnings: What the user should know, one line each.
    """

    image: Image.Image
    name: str
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, image: Image.Image, name: str = "the portrait") -> Self:
        """Take a Pillow image of any mode that the formats have; it is not rotated.

        Its embedded colour profile is applied, transparency is flattened onto white, palettes are
        expanded, 16-bit grey is scaled to 8 bits.

        Raises:
            UserError: It is damaged, smaller than `MIN_SIDE`, larger than `MAX_PIXELS`, or longer
                than `MAX_ASPECT`.
        """
        check_picture(name, image.width, image.height)
        with _decoding(name):
            rgb, notes = _to_rgb(image)
        return cls(image=rgb, name=name, warnings=tuple(f"{name}: {note}" for note in notes))

    def check_crop(self, crop: Crop | None) -> None:
        """Check that a rectangle is inside the picture.

        Raises:
            UserError: It is not, or is too small or too elongated for a portrait.
        """
        if not isinstance(crop, tuple):
            return
        x, y, width, height = crop
        option = f"--crop {x},{y},{width},{height}"
        if min(x, y) < 0 or x + width > self.image.width or y + height > self.image.height:
            raise UserError(
                f"{option}: reaches beyond {self.name}, which is {self.image.width} wide and "
                f"{self.image.height} high; x, y, width and height are in its pixels"
            )
        check_picture(option, width, height)

    def fit(
        self, size: tuple[int, int], crop: Crop | None = None
    ) -> tuple[torch.Tensor, tuple[str, ...]]:
        """Crop and scale to the frame.

        Args:
            size: Frame size (H, W), height first.
            crop: Part to keep. None: the centre, with a warning if more than `CUT` is lost. A
                rectangle is itself cropped to its centre if its shape is not the frame's.

        Returns:
            Uint8 [3, H, W], see `fit_portrait`; and all warnings, including that one.

        Raises:
            UserError: See `check_crop`.
        """
        self.check_crop(crop)
        image = self.image
        if isinstance(crop, tuple):
            x, y, width, height = crop
            image = image.crop((x, y, x + width, y + height))
        said = () if isinstance(crop, str) else _cut(self.name, image, size)
        pixels = fit_portrait(image, size, top=crop == "top")
        return pixels, self.warnings + said


def parse_crop(text: str) -> Crop:
    """Parse ``centre`` (or ``center``), ``top`` or ``x,y,w,h``.

    Raises:
        UserError: The text has another form.
    """
    if text in ("centre", "center"):
        return "centre"
    if text == "top":
        return "top"
    if not re.fullmatch(r"[0-9]{1,6}(,[0-9]{1,6}){3}", text):
        raise UserError(
            f"--crop {text!r}: is not top, centre or x,y,w,h; write for example 0,0,600,800"
        )
    x, y, width, height = map(int, text.split(","))
    return x, y, width, height


def load_portrait(path: Path | str) -> Portrait:
    """Read a picture as 8-bit sRGB, upright.

    The EXIF orientation is applied, an embedded ICC profile is converted to sRGB, transparency is
    flattened onto white, palettes are expanded, 16-bit grey is scaled to 8 bits, and an animation
    yields its first frame. Without an ICC profile the picture is assumed to be sRGB; a PNG that
    says otherwise (by cICP, or by cHRM or gAMA without sRGB) causes a warning. A damaged profile or
    orientation is ignored, with a warning.

    Args:
        path: PNG, JPEG, WebP, BMP or GIF.

    Returns:
        The picture.

    Raises:
        UserError: The file is missing, a folder, empty or unreadable, not a picture, damaged,
            smaller than `MIN_SIDE`, larger than `MAX_PIXELS` or `MAX_BYTES`, longer than
            `MAX_ASPECT`.
    """
    path = check_input(path, "picture")
    name = str(path)
    with _decoding(name), path.open("rb") as file:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{name}: larger than {MAX_BYTES >> 20} MiB; scale the picture down")
        _check_jpeg(file)
        with Image.open(file, formats=FORMATS) as image:
            check_picture(name, image.width, image.height)
            image.load()
            turned, notes = _upright(image)
            if image.format == "PNG" and "icc_profile" not in image.info:
                notes += _png_colours(image, file)
            portrait = Portrait.of(turned, name)
    said = tuple(f"{name}: {note}" for note in notes)
    return replace(portrait, warnings=said + portrait.warnings)


def fit_portrait(image: Image.Image, size: tuple[int, int], *, top: bool = False) -> torch.Tensor:
    """Scale a picture to cover the frame and cut out its centre, like the published model.

    With s = max(H / h, W / w) the picture becomes ceil(h s) x ceil(w s) with Pillow's bilinear
    filter; the crop starts at round((ceil(h s) - H) / 2), halves to even, and likewise for W.
    Source: SoulX-FlashTalk, commit 688982e.

    Args:
        image: Mode RGB, w x h pixels.
        size: Frame size (H, W), height first.
        top: Cut out the top of the rows rather than the centre.

    Returns:
        Uint8 [3, H, W].
    """
    height, width = size
    # In floating point, as published: occasionally a row more than the exact quotient needs.
    scale = max(height / image.height, width / image.width)
    rows, columns = math.ceil(image.height * scale), math.ceil(image.width * scale)
    scaled_HWC = np.asarray(image.resize((columns, rows), Image.Resampling.BILINEAR))
    first = 0 if top else round((rows - height) / 2)
    left = round((columns - width) / 2)
    crop_HWC = scaled_HWC[first : first + height, left : left + width]
    return torch.from_numpy(crop_HWC.transpose(2, 0, 1).copy())


def check_picture(path: Path | str, width: int, height: int) -> None:
    """Check the size of a picture in pixels; ``path`` is its name in errors.

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
        raise UserError(
            f"{path}: {width}x{height} pixels cannot be a portrait; crop it to the head"
        )


def _too_large(path: Path | str, found: str = "") -> UserError:
    limit = MAX_PIXELS // 1_000_000
    return UserError(f"{path}: more than {limit} megapixels{found}; scale the picture down")


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a `UserError` that names the picture."""
    with warnings.catch_warnings():
        # Warnings about sizes below our own limit, and about metadata that is not needed here.
        warnings.simplefilter("ignore")
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise _too_large(name) from None
        except UnidentifiedImageError:
            raise UserError(
                f"{name}: not a picture that can be read; use PNG, JPEG, WebP, BMP or GIF"
            ) from None
        except Exception as error:  # on damaged data decoders raise nearly anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{name}: the picture is damaged ({reason}); export it again") from None


def _check_jpeg(file: BinaryIO) -> None:
    """Reject a JPEG whose decoding costs far more than its size suggests; rewind the file.

    Raises:
        ValueError: Says why.
    """
    data = file.read()
    file.seek(0)
    if data[:3] != b"\xff\xd8\xff":
        return
    if data.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError("far too many scans")
    at, exif = 2, 0
    while at < len(data):
        begin = data.find(b"\xff", at)
        if begin < 0 or begin > at + MAX_EXIF:
            raise ValueError("no picture after the header")
        kind = data[begin + 1 : begin + 2]
        at = begin + 1 if kind == b"\xff" else begin + 2
        if kind == b"\xda" or not kind:  # image data begins
            break
        if kind in b"\x00\x01\xc8\xff" or b"\xd0" <= kind <= b"\xd9" or b"\xf0" <= kind <= b"\xfd":
            continue  # without a body
        length = int.from_bytes(data[at : at + 2])
        if kind == b"\xe1" and data[at + 2 : at + 6] == b"Exif":
            exif += length
        at += max(length, 2)
    if exif > MAX_EXIF:
        raise ValueError("more EXIF data than JPEG allows")


def _upright(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Rotate a picture according to its EXIF data; return it with any notes about that."""
    data = image.info.get("exif") or image.info.get("Raw profile type exif") or b""
    try:
        # In hexadecimal if it is text.
        if len(data) > MAX_EXIF * (1 + isinstance(data, str)):
            raise ValueError("too large")
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # of many kinds, as for the picture itself, which may be intact
        note = "its EXIF data is damaged and ignored; export it again if it is not upright"
        return image, [note]
    return (image if turn is None else image.transpose(turn)), []


def _png_colours(image: Image.Image, file: BinaryIO) -> list[str]:
    """List what a PNG without a profile says about its colours, if they are not sRGB."""
    info = image.info
    primaries, gamma = info.get("chromaticity", _PRIMARIES), info.get("gamma", _GAMMA)
    off = max(abs(a - b) for a, b in zip(primaries, _PRIMARIES, strict=True))
    plain = "srgb" in info or (abs(gamma - _GAMMA) < 0.02 and off < 0.01)
    if plain and _png_chunk(file, b"cICP") in (None, _CICP_SRGB):
        return []
    return ["its colours are not sRGB and it has no ICC profile; export it as sRGB"]


def _png_chunk(file: BinaryIO, name: bytes) -> bytes | None:
    """Read a chunk that precedes the image data."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == name:
            return file.read(length)
        if kind == b"IDAT":
            break
        file.seek(length + 4, 1)
    return None


def _to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Convert any mode that the formats have to RGB; return it with any notes on its profile."""
    info, notes = image.info, []
    layer = image.convert("RGBA") if image.has_transparency_data else None
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)  # 65535 = 257 * 255 is white
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    rgb = None
    if "icc_profile" in info:
        modes = {"CMYK": "CMYK", "1": "L", "L": "L", "LA": "L"}
        try:
            rgb = to_srgb(image.convert(modes.get(image.mode, "RGB")), info["icc_profile"] or b"")
        except ProfileError as error:
            notes.append(
                f"its colour profile {error} and is ignored; export it as sRGB if the colours "
                "are wrong"
            )
    if layer is None:
        return rgb or image.convert("RGB"), notes
    if rgb is not None:
        rgb.putalpha(layer.getchannel("A"))
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, rgb or layer).convert("RGB"), notes


def _cut(name: str, image: Image.Image, size: tuple[int, int]) -> tuple[str, ...]:
    """Describe what a crop to the frame loses, if that is much."""
    height, width = size
    down, across = height / image.height, width / image.width
    lost = 1 - min(down, across) / max(down, across)
    if lost <= CUT:
        return ()
    if down < across:
        where = "at the top and bottom; choose with --crop top or --crop x,y,w,h"
    else:
        where = "at the left and right; choose with --crop x,y,w,h"
    return (
        f"{name}: the crop to {height}x{width} removes {lost:.0%} of the picture, {where}, or "
        "keep its shape with --size",
    )
