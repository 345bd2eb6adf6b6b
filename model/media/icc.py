"""Converts embedded colour profiles, as recorded by cameras and phones, to sRGB."""

import io
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from PIL.ImageCms import ImageCmsTransform

MAX_PROFILE = 4 << 20
"""Bytes; printing-press profiles, the largest in use, take half of it."""

_CLASSES = ("mntr", "scnr", "spac", "prtr")  # devices and spaces; not links, not effects
_MODES: Mapping[str, str] = MappingProxyType({"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"})
_SAME = 2  # levels of 255 by which sRGB copies differ: rounded primaries, curves as tables


class ProfileError(ValueError):
    """A profile that cannot be used; says why."""


def to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert a picture from its embedded profile.

    Relative colorimetric with black point compensation, clipped to sRGB. A profile that is itself
    sRGB, under whatever name, changes nothing.

    Args:
        image: Mode RGB, L or CMYK.
        profile: The ICC profile.

    Returns:
        Mode RGB; the picture itself if the profile is sRGB and the mode already RGB.

    Raises:
        ProfileError: The profile is damaged, too large, or for other colours than the picture's.
    """
    from PIL import ImageCms

    if len(profile) > MAX_PROFILE:
        raise ProfileError(f"is larger than {MAX_PROFILE >> 20} MiB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space, kind = source.profile.xcolor_space.strip(), source.profile.device_class.strip()
    except Exception:  # lcms and its binding raise several kinds, none of them more specific
        raise ProfileError("is damaged") from None
    mode = _MODES.get(space)
    if mode is None or kind not in _CLASSES:
        raise ProfileError(f"is of an unknown kind ({space} {kind})")
    if image.mode != mode and not (image.mode == "L" and mode == "RGB"):
        raise ProfileError(f"is for {space} colours, the picture is {image.mode}")
    try:
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        if mode == "RGB":
            image = image.convert("RGB")
            if _is_srgb(transform):
                return image
        converted: Image.Image = transform.apply(image)
    except MemoryError:
        raise
    except Exception:
        raise ProfileError("is damaged") from None
    return converted


def _is_srgb(transform: "ImageCmsTransform") -> bool:
    """Return whether a transform leaves a lattice of colours and all greys unchanged."""
    levels = np.linspace(0, 255, 18).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(-1, 3)
    greys = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    before = np.concatenate((lattice, greys))[None]
    after = np.asarray(transform.apply(Image.fromarray(before)))
    return int(np.abs(after.astype(int) - before).max()) <= _SAME
