"""Pictures in: upright RGB from any common format, the published crop, bad files refused."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from livetalk_kernels.errors import UserError
from livetalk_model.media.image import MAX_PIXELS, MIN_SIDE, fit_portrait, load_portrait

SAMPLES = Path(__file__).resolve().parents[2] / "model/samples"
SIZES = [(96, 64), (64, 96), (48, 80), (256, 160)]
ORIENTATION = 0x112


def gradient(width: int = 40, height: int = 60) -> Image.Image:
    """Red grows to the right, green downwards."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns * 6 % 256, rows * 4 % 256, np.full_like(rows, 90)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.golden
@pytest.mark.parametrize("size", SIZES)
def test_crop_equals_the_published_one(
    reference_dir: Path, golden: Callable[[str], dict[str, torch.Tensor]], size: tuple[int, int]
) -> None:
    image = load_portrait(reference_dir / "io" / "portrait_149x203.png").image
    wanted = golden("misc")[f"image.crop_{size[0]}x{size[1]}"][0, :, 0]
    assert torch.equal(fit_portrait(image, size), wanted)


@pytest.mark.parametrize("size", [*SIZES, (768, 448), (16, 16), (16, 512)])
@pytest.mark.parametrize("source", [(40, 60), (192, 192), (1000, 333), (17, 17)])
def test_crop_covers_the_frame(source: tuple[int, int], size: tuple[int, int]) -> None:
    crop = fit_portrait(Image.new("RGB", source, (10, 20, 30)), size)
    assert crop.shape == (3, *size)
    assert crop.dtype == torch.uint8
    assert crop.is_contiguous()
    assert [plane.unique().tolist() for plane in crop] == [[10], [20], [30]]


def test_picture_of_the_frame_size_is_not_touched() -> None:
    image = gradient(64, 96)
    crop = fit_portrait(image, (96, 64))
    assert np.array_equal(crop.permute(1, 2, 0).numpy(), np.asarray(image))


def test_half_pixels_of_the_crop_round_to_even() -> None:
    """One row over: from row round(0.5) = 0; three rows over: from row round(1.5) = 2."""
    for surplus, top in ((1, 0), (3, 2)):
        image = gradient(32, 32 + surplus)
        crop = fit_portrait(image, (32, 32))
        wanted = np.asarray(image)[top : top + 32]
        assert np.array_equal(crop.permute(1, 2, 0).numpy(), wanted)


@pytest.mark.parametrize("ending", ["png", "webp", "bmp", "jpg", "gif"])
def test_formats(tmp_path: Path, ending: str) -> None:
    image = gradient()
    options = {"lossless": True} if ending == "webp" else {}
    loaded = load_portrait(save(image, tmp_path / f"a.{ending}", **options)).image
    assert loaded.mode == "RGB"
    error = np.abs(np.asarray(loaded).astype(int) - np.asarray(image))
    assert error.max() == 0 if ending in ("png", "webp", "bmp") else error.mean() < 8


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_exif_orientation(tmp_path: Path, ending: str) -> None:
    image = Image.new("RGB", (60, 40), "black")
    image.paste("white", (0, 0, 30, 40))  # the left half
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned clockwise: left becomes top
    loaded = load_portrait(save(image, tmp_path / f"a.{ending}", exif=exif)).image
    assert loaded.size == (40, 60)
    pixels = np.asarray(loaded)
    assert pixels[:28].min() > 200 and pixels[32:].max() < 50


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (32, 32), (200, 0, 0, 0))
    image.paste((0, 0, 200, 255), (0, 0, 16, 32))
    image.paste((0, 0, 0, 128), (16, 16, 32, 32))
    pixels = np.asarray(load_portrait(save(image, tmp_path / "a.png")).image)
    assert (pixels[0, 0] == (0, 0, 200)).all()
    assert (pixels[0, 31] == 255).all()
    assert np.abs(pixels[31, 31].astype(int) - 127).max() <= 1


def test_palette_grey_and_one_bit(tmp_path: Path) -> None:
    image = gradient()
    for mode in ("P", "L", "1", "LA", "CMYK"):
        ending = "jpg" if mode == "CMYK" else "png"
        loaded = load_portrait(save(image.convert(mode), tmp_path / f"{mode}.{ending}")).image
        wanted = np.asarray(image.convert(mode).convert("RGB")).astype(int)
        assert loaded.mode == "RGB"
        assert np.abs(np.asarray(loaded) - wanted).mean() < 3
    palette = image.convert("P")
    palette.info["transparency"] = 0
    assert load_portrait(save(palette, tmp_path / "t.png")).image.mode == "RGB"


def test_16_bit_grey_keeps_its_brightness(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    pixels = np.asarray(load_portrait(save(Image.fromarray(grey), tmp_path / "a.png")).image)
    wanted = np.round(grey / 257)
    assert np.array_equal(pixels, np.repeat(wanted[..., None], 3, axis=2))


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG that declares a size and holds next to nothing."""

    def chunk(name: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def make_bad_file(kind: str, folder: Path) -> Path:
    path = folder / "bad.png"
    match kind:
        case "folder":
            path.mkdir()
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("This is no picture, although its name says so.\n" * 100)
        case "truncated PNG":
            noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            save(Image.fromarray(noise), path)
            path.write_bytes(path.read_bytes()[:6000])
        case "truncated JPEG":
            path = save(gradient(200, 200), folder / "bad.jpg")
            path.write_bytes(path.read_bytes()[:2000])
        case "corrupt":
            save(gradient(), path)
            data = bytearray(path.read_bytes())
            data[60:80] = bytes(20)
            path.write_bytes(data)
        case "1x1":
            save(Image.new("RGB", (1, 1)), path)
        case "too narrow":
            save(Image.new("RGB", (MIN_SIDE - 1, 100)), path)
        case "a strip":
            save(Image.new("RGB", (1000, 20)), path)
        case "just too large":
            png_header(path, MAX_PIXELS // 1000 + 1, 1000)
        case "larger than Pillow warns of":
            png_header(path, 10_000, 10_000)
        case "larger than Pillow opens":
            png_header(path, 100_000, 100_000)
    return path


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("missing", "no such picture file"),
        ("folder", "is a folder"),
        ("empty", "is empty"),
        ("text", "not a picture"),
        ("truncated PNG", "is damaged"),
        ("truncated JPEG", "is damaged"),
        ("corrupt", "is damaged"),
        ("1x1", "1x1 pixels are too few"),
        ("too narrow", "15x100 pixels are too few"),
        ("a strip", "1000x20 pixels cannot be a portrait"),
        ("just too large", r"more than 80 megapixels \(80001x1000\)"),
        ("larger than Pillow warns of", "more than 80 megapixels"),
        ("larger than Pillow opens", "more than 80 megapixels"),
    ],
)
def test_bad_files_give_one_line(
    tmp_path: Path, kind: str, says: str, recwarn: pytest.WarningsRecorder
) -> None:
    path = make_bad_file(kind, tmp_path)
    with pytest.raises(UserError, match=says) as caught:
        load_portrait(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert ";" in message  # what is wrong; what to do
    assert not list(recwarn)


def test_bundled_portrait() -> None:
    image = load_portrait(SAMPLES / "ada.png").image
    assert image.size == (192, 192)
    assert fit_portrait(image, (64, 64)).float().std() > 20
