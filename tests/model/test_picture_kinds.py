"""Pictures as cameras, phones and editors write them: profiles, crops, damaged metadata."""

import io
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from livetalk_kernels.errors import UserError
from livetalk_model import load_preparer
from livetalk_model.media.icc import MAX_PROFILE
from livetalk_model.media.image import (
    MAX_BYTES,
    MAX_SCANS,
    Portrait,
    fit_portrait,
    load_portrait,
    parse_crop,
)

RED = (220, 60, 50)
RED_IN_P3 = (203, 73, 60)
SRGB = ((0.64, 0.33), (0.3, 0.6), (0.15, 0.06))
P3 = ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
TO_D50 = np.array(  # Bradford, from D65
    [
        [1.0478112, 0.0228866, -0.0501270],
        [0.0295424, 0.9904844, -0.0170491],
        [-0.0092345, 0.0150436, 0.7521316],
    ]
)
WHITE = np.array([0.9504559, 1.0, 1.0890578])


def matrix(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Linear RGB of a display with D65 white -> XYZ under D50."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    return TO_D50 @ (columns * np.linalg.solve(columns, WHITE))


def fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + fixed(*values)


def icc(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    """A profile of version 2."""
    body, table, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    size = offset + len(body)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02100000, kind, space, b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    head += fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb_profile(primaries: tuple[tuple[float, float], ...]) -> bytes:
    """A display with sRGB's curve, as a table of 1024 entries."""
    x = np.linspace(0, 1, 1024)
    curve = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    table = (curve * 65535).round().astype(">u2").tobytes()
    trc = b"curv\0\0\0\0" + struct.pack(">I", 1024) + table
    tags = {b"wtpt": xyz(0.9642, 1.0, 0.8249)}
    for name, column in zip((b"r", b"g", b"b"), matrix(primaries).T, strict=True):
        tags |= {name + b"XYZ": xyz(*column), name + b"TRC": trc}
    return icc(b"RGB ", tags)


def grey_profile(gamma: float) -> bytes:
    trc = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    return icc(b"GRAY", {b"wtpt": xyz(0.9642, 1.0, 0.8249), b"kTRC": trc})


def cmyk_profile() -> bytes:
    """Ink C, M, Y, K to a Lab grid of two points an axis: paper is white, any black is black."""
    grid = []
    for ink in np.ndindex(2, 2, 2, 2):
        red, green, blue = (1 - (ink[i] | ink[3]) for i in range(3))
        light = 0.21 * red + 0.72 * green + 0.07 * blue
        grid += [
            round(light * 65280),
            32768 + 20000 * (red - green),
            32768 + 20000 * (green - blue),
        ]
    ramp = struct.pack(">2H", 0, 65535)
    lut = b"mft2\0\0\0\0" + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut += struct.pack(">2H", 2, 2) + 4 * ramp + struct.pack(f">{len(grid)}H", *grid) + 3 * ramp
    head = bytearray(icc(b"CMYK", {b"wtpt": xyz(0.9642, 1.0, 0.8249), b"A2B0": lut}, b"prtr"))
    head[20:24] = b"Lab "
    return bytes(head)


def noise(mode: str = "RGB", width: int = 64, height: int = 64) -> Image.Image:
    bands = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(-1) if bands == 1 else pixels, mode)


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def pixel(picture: Portrait) -> np.ndarray:
    return np.asarray(picture.image)[10, 10].astype(int)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_a_phones_colours_become_srgb(tmp_path: Path, ending: str) -> None:
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}, "png": {}}
    plain = Image.new("RGB", (64, 64), RED_IN_P3)
    path = tmp_path / f"p3.{ending}"
    save(plain, path, icc_profile=rgb_profile(P3), **options[ending])
    picture = load_portrait(path)
    assert np.abs(pixel(picture) - RED).max() <= 2
    assert picture.image.mode == "RGB" and not picture.warnings
    assert np.array_equal(pixel(Portrait.of(Image.open(path))), pixel(picture))


def test_an_orientation_and_a_profile(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = Image.new("RGB", (64, 32), RED_IN_P3)
    picture = load_portrait(save(plain, tmp_path / "a.png", exif=exif, icc_profile=rgb_profile(P3)))
    assert picture.image.size == (32, 64) and np.abs(pixel(picture) - RED).max() <= 2


@pytest.mark.parametrize("profile", ["lcms", "primaries"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_a_profile_that_is_srgb_changes_nothing(tmp_path: Path, profile: str, mode: str) -> None:
    data = rgb_profile(SRGB)
    if profile == "lcms":
        data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = noise().convert("P") if mode == "P" else noise(mode)
    plain = load_portrait(save(image, tmp_path / "plain.png"))
    tagged = load_portrait(save(image, tmp_path / "tagged.png", icc_profile=data))
    assert np.array_equal(np.asarray(plain.image), np.asarray(tagged.image))
    assert not plain.warnings and not tagged.warnings


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_grey_profile(tmp_path: Path, mode: str) -> None:
    """Level 128 of a linear scale is 188 in sRGB."""
    level = {"L": 128, "LA": (128, 255), "I;16": 128 * 257}[mode]
    path = tmp_path / "a.png"
    save(Image.new(mode, (32, 32), level), path, icc_profile=grey_profile(1.0))
    picture = load_portrait(path)
    assert np.abs(pixel(picture) - 188).max() <= 2 and not picture.warnings


def test_inks_of_a_press(tmp_path: Path) -> None:
    """Without the profile white and black are the same, and a half is not."""
    inks = Image.new("CMYK", (64, 32), (0, 0, 0, 0))
    inks.paste((0, 0, 0, 255), (32, 0, 64, 32))
    path = save(inks, tmp_path / "a.jpg", quality=100, icc_profile=cmyk_profile())
    picture = load_portrait(path)
    pixels = np.asarray(picture.image).astype(int)
    assert not picture.warnings
    assert pixels[10, 10].min() > 245 and pixels[10, 60].max() < 10


def test_transparency_is_laid_on_white_after_the_profile(tmp_path: Path) -> None:
    image = Image.new("RGBA", (32, 32), (*RED_IN_P3, 128))
    path = save(image, tmp_path / "a.png", icc_profile=rgb_profile(P3))
    assert np.abs(pixel(load_portrait(path)) - (np.array(RED) + 255) / 2).max() <= 2


def broken_profiles() -> dict[str, bytes]:
    whole = rgb_profile(P3)
    return {
        "noise": bytes(range(256)) * 4,
        "cut": whole[:300],
        "no tags": icc(b"RGB ", {}),
        "of other colours": grey_profile(2.2),
        "of inks": cmyk_profile(),
        "a link": icc(b"RGB ", {}, b"link"),
        "too large": whole + bytes(MAX_PROFILE),
        "offsets beyond the end": whole[:132] + b"\xff" * 120 + whole[252:],
    }


@pytest.mark.parametrize("kind", list(broken_profiles()))
def test_a_profile_that_is_no_good_is_ignored_and_said(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.webp"
    save(noise(), path, lossless=True, icc_profile=broken_profiles()[kind])
    picture = load_portrait(path)
    assert np.array_equal(np.asarray(picture.image), np.asarray(noise()))
    (warning,) = picture.warnings
    assert warning.startswith(f"{path}: its colour profile ") and ";" in warning


def test_mutated_profiles_never_refuse_a_picture(tmp_path: Path) -> None:
    generator, whole = np.random.default_rng(1), rgb_profile(P3)
    for _ in range(150):
        data = bytearray(whole)
        for place in generator.integers(0, 260, 4):
            data[place] = generator.integers(0, 256)
        image = noise()
        image.info["icc_profile"] = bytes(data)
        assert Portrait.of(image).image.mode == "RGB"


def png(path: Path, **chunks: bytes) -> Path:
    """A grey PNG with more chunks before its data."""
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (90, 90, 90)).save(buffer, "PNG")
    data = buffer.getvalue()
    extra = b""
    for name, body in chunks.items():
        kind = name.encode()
        extra += struct.pack(">I", len(body)) + kind + body
        extra += struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(data[:33] + extra + data[33:])
    return path


@pytest.mark.parametrize(
    ("chunks", "said"),
    [
        ({"gAMA": struct.pack(">I", 45455)}, False),
        ({"gAMA": struct.pack(">I", 100000)}, True),
        ({"gAMA": struct.pack(">I", 100000), "sRGB": b"\0"}, False),
        (
            {"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)},
            False,
        ),
        ({"cHRM": struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)}, True),
        ({"cICP": bytes((1, 13, 0, 1))}, False),
        ({"cICP": bytes((9, 16, 0, 1))}, True),
    ],
)
def test_a_png_that_names_other_colours_without_a_profile(
    tmp_path: Path, chunks: dict[str, bytes], said: bool
) -> None:
    picture = load_portrait(png(tmp_path / "a.png", **chunks))
    assert tuple(pixel(picture)) == (90, 90, 90)
    assert [("not sRGB" in warning) for warning in picture.warnings] == [True] * said


def exif_bytes(entries: list[tuple[int, int, int, bytes]], more: bytes = b"") -> bytes:
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4) + more


DAMAGED_EXIF = {
    "orientation is text": exif_bytes([(0x0112, 2, 4, b"abc\0")]),
    "orientation is a fraction": exif_bytes([(0x0112, 5, 1, b"\x1a\0\0\0")], bytes(8)),
    "orientation is 77": exif_bytes([(0x0112, 3, 1, b"\x4d\0\0\0")]),
    "no header": b"Exif\0\0garbage and more of it",
    "cut": exif_bytes([(0x0112, 3, 1, b"\x06\0\0\0")])[:20],
    "a pointer that loops": exif_bytes([(0x8769, 4, 1, b"\x08\0\0\0")]),
}


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("kind", list(DAMAGED_EXIF))
def test_damaged_exif_does_not_refuse_the_picture(tmp_path: Path, kind: str, ending: str) -> None:
    path = save(Image.new("RGB", (40, 60), RED), tmp_path / f"a.{ending}", exif=DAMAGED_EXIF[kind])
    picture = load_portrait(path)
    assert picture.image.size == (40, 60)
    assert all("EXIF" in warning for warning in picture.warnings)


def jpeg_with(*segments: bytes, scans: int = 0) -> bytes:
    buffer = io.BytesIO()
    noise().save(buffer, "JPEG")
    data = buffer.getvalue()
    head = b"".join(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in segments)
    return data[:2] + head + data[2:-2] + scans * b"\xff\xda\0\x02" + data[-2:]


def exif_bomb() -> bytes:
    """Each of thousands of entries names megabytes: together they are far more than memory."""
    entries = [(tag, 1, 3_000_000, struct.pack("<I", 8)) for tag in range(5000)]
    body = exif_bytes(entries, bytes(3_000_000))[6:]
    parts = [body[at : at + 65000] for at in range(0, len(body), 65000)]
    return jpeg_with(*(b"Exif\0\0" + part for part in parts))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("exif.jpg", exif_bomb),
        ("scans.jpg", lambda: jpeg_with(scans=MAX_SCANS + 1)),
        ("rubbish.jpg", lambda: b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(30_000_000)),
        ("large.bmp", None),
    ],
)
def test_what_costs_too_much_is_refused_at_once(
    tmp_path: Path, name: str, make: Callable[[], bytes] | None
) -> None:
    path = tmp_path / name
    if make is None:
        with path.open("wb") as file:
            file.write(b"BM")
            file.truncate(MAX_BYTES + 1)
    else:
        path.write_bytes(make())
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_portrait(path)
    assert time.monotonic() - start < 2
    assert str(caught.value).startswith(f"{path}: ") and ";" in str(caught.value)


@pytest.mark.parametrize("ending", ["png", "webp"])
def test_a_large_exif_block_elsewhere_is_ignored_and_said(tmp_path: Path, ending: str) -> None:
    exif = exif_bytes([(0x0112, 3, 1, b"\x06\0\0\0")], bytes(70_000))
    path = save(Image.new("RGB", (40, 60), RED), tmp_path / f"a.{ending}", exif=exif)
    picture = load_portrait(path)
    assert picture.image.size == (40, 60) and "EXIF" in picture.warnings[0]


class BadError(Exception):
    pass


@pytest.mark.parametrize(
    "error", [TypeError("x"), KeyError(1), ZeroDivisionError(), RecursionError(), BadError("a\nb")]
)
def test_whatever_a_decoder_raises_is_one_line(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object) -> None:
        raise error

    path = save(noise(), tmp_path / "a.bmp")
    monkeypatch.setattr("PIL.BmpImagePlugin.BmpImageFile.load", broken)
    with pytest.raises(UserError, match="is damaged") as caught:
        load_portrait(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="the portrait: the picture is damaged"):
        Portrait.of(Image.open(path))


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    exif, generator = exif_bytes([(0x0112, 3, 1, b"\x06\0\0\0")]), np.random.default_rng(2)
    for ending in ("jpg", "png", "webp", "gif", "bmp"):
        path = tmp_path / f"a.{ending}"
        save(noise(), path, exif=exif, icc_profile=rgb_profile(P3))
        whole = path.read_bytes()
        for _ in range(40):
            data = bytearray(whole)
            for place in generator.integers(0, min(len(data), 400), 3):
                data[place] = generator.integers(0, 256)
            path.write_bytes(data)
            try:
                load_portrait(path)
            except UserError as error:
                assert str(error).startswith(f"{path}: ")


# Crops


def rows(width: int, height: int) -> Image.Image:
    """Red says the row, green the column."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([y, x, 0 * x], -1).astype(np.uint8))


@pytest.mark.parametrize(
    ("source", "size", "where"),
    [
        ((90, 160), (96, 96), "at the top and bottom; choose with --crop top or"),
        ((160, 90), (96, 96), "at the left and right; choose with --crop x,y,w,h"),
        ((96, 119), (96, 96), ""),
        ((96, 121), (96, 96), "removes 21% of the picture"),
        ((448, 768), (768, 448), ""),
    ],
)
def test_a_crop_that_loses_much_is_said(
    source: tuple[int, int], size: tuple[int, int], where: str
) -> None:
    image = Image.new("RGB", source)
    pixels, warnings = Portrait.of(image, "me.png").fit(size)
    assert torch.equal(pixels, fit_portrait(image, size))
    assert bool(warnings) == bool(where)
    assert all(line.startswith("me.png: the crop to 96x96") and where in line for line in warnings)


def test_top_keeps_the_head_and_a_rectangle_is_exact() -> None:
    portrait = Portrait.of(rows(64, 128))
    centre, _ = portrait.fit((64, 64), "centre")
    top, warnings = portrait.fit((64, 64), "top")
    assert not warnings and centre[0, :, 0].tolist() == list(range(32, 96))
    assert top[0, :, 0].tolist() == list(range(64)) and top[1, 0].tolist() == list(range(64))
    part, warnings = portrait.fit((16, 32), (5, 100, 32, 16))
    assert not warnings and part[0, :, 0].tolist() == list(range(100, 116))
    assert part[1, 0].tolist() == list(range(5, 37))
    _, warnings = portrait.fit((32, 16), (5, 100, 32, 16))  # of another shape than the frame
    assert "removes 75%" in warnings[0]


def test_a_wide_picture_keeps_its_middle_at_the_top() -> None:
    portrait = Portrait.of(rows(128, 64))
    assert torch.equal(portrait.fit((64, 64), "top")[0], portrait.fit((64, 64), "centre")[0])


@pytest.mark.parametrize(
    ("crop", "says"),
    [
        (
            (0, 0, 65, 128),
            "--crop 0,0,65,128: reaches beyond me.png, which is 64 wide and 128 high",
        ),
        ((0, 100, 64, 64), "reaches beyond"),
        ((-1, 0, 32, 32), "reaches beyond"),
        ((0, 0, 0, 0), "0x0 pixels are too few"),
        ((0, 0, 15, 100), "15x100 pixels are too few"),
    ],
)
def test_rectangles_that_are_none(crop: tuple[int, int, int, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Portrait.of(rows(64, 128), "me.png").fit((32, 32), crop)


def test_words_for_a_crop() -> None:
    assert [parse_crop(word) for word in ("centre", "center", "top")] == ["centre", "centre", "top"]
    assert parse_crop("1,2,30,40") == (1, 2, 30, 40)
    for text in (
        "",
        "bottom",
        "1,2,3",
        "1,2,3,4,5",
        "-1,2,30,40",
        "1.5,2,3,4",
        "1,2,3,²",
        "9" * 40,
    ):
        with pytest.raises(UserError, match="write for example 0,0,600,800"):
            parse_crop(text)


def test_the_library_crops_and_says_so(tmp_path: Path) -> None:
    preparer = load_preparer(preset="tiny", device="cpu")
    path = save(rows(64, 128), tmp_path / "a.png")
    avatar = preparer.prepare(path, size=(32, 32))
    assert avatar.warnings == (
        f"{path}: the crop to 32x32 removes 50% of the picture, at the top and bottom; choose with "
        "--crop top or --crop x,y,w,h, or keep its shape with --size",
    )
    top = preparer.prepare(rows(64, 128), size=(32, 32), crop="top")
    assert not top.warnings
    part = preparer.prepare(path, size=(32, 32), crop=(0, 0, 64, 64))
    assert not part.warnings  # only the filter at the edge sees that there is more
    assert torch.equal(top.portrait[:, :31], part.portrait[:, :31])
    with pytest.raises(UserError, match="--crop 'left'"):
        preparer.prepare(path, crop="left")
    top.save(tmp_path / "a.avatar")
    assert not type(top).load(tmp_path / "a.avatar").warnings
