"""Let a model animate five faces drawn by other rules than its data, and the bundled ones.

    python benchmarks/foreign_portraits.py --output out/foreign.json

For each portrait: CIEDE2000, a mean over the pixels, between the cropped portrait and the mean
frame, and the worst frame. The PNG next to the report has a row per portrait: the portrait and
seven frames.
"""

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from contact_sheet import sheet
from PIL import Image, ImageDraw, ImageFilter

from livetalk_kernels.errors import UserError
from livetalk_kernels.machine import machine
from livetalk_kernels.outputs import new_file, write_json
from livetalk_model.bundled import SPEECH, bundled_portraits
from livetalk_model.config import NEW_FRAMES
from livetalk_model.evaluate.difference import ciede2000, lab_of
from livetalk_model.evaluate.models import Model
from livetalk_model.evaluate.streams import make_stream
from livetalk_model.media.audio import AudioReader
from livetalk_model.stream.chunk import StreamOptions
from livetalk_model.train.faces.mouth import HOP

SIDE, SCALE = 96, 4
EXAMPLE = Path(__file__).parents[1] / "examples" / "portrait.png"
FRAMES = 7
Draw = ImageDraw.ImageDraw


def outlined() -> Image.Image:
    """Draw a comic face: flat colours, thick black outlines, dots for eyes."""
    image, draw = _canvas((250, 214, 90))
    line: dict[str, Any] = {"outline": (20, 20, 20), "width": 8}
    draw.ellipse((60, 320, 324, 470), fill=(60, 110, 200), **line)
    draw.ellipse((100, 60, 284, 320), fill=(255, 224, 189), **line)
    draw.pieslice((96, 40, 288, 240), 180, 360, fill=(200, 80, 40), **line)
    for x in (150, 234):
        draw.ellipse((x - 10, 170, x + 10, 200), fill=(20, 20, 20))
    draw.arc((150, 210, 234, 280), 20, 160, fill=(20, 20, 20), width=8)
    return image


def shaded() -> Image.Image:
    """Draw a head by shading alone: a lit sphere with soft features, like a rendering."""
    rows, columns = np.mgrid[: SIDE * SCALE, : SIDE * SCALE] / (SIDE * SCALE) - 0.5
    x, y = columns / 0.26, (rows + 0.02) / 0.34
    inside = np.clip(1 - x**2 - y**2, 0, None) ** 0.5
    light = np.clip(-0.5 * x - 0.4 * y + 0.77 * inside, 0.12, 1)
    skin = np.array([224, 172, 138]) * light[..., None]
    wall = np.array([70, 84, 96]) * (1.1 - rows[..., None])
    pixels = np.where(inside[..., None] > 0, skin, wall)
    for side in (-1, 1):
        pixels *= 1 - 0.85 * _spot(columns - 0.1 * side, rows + 0.05, 0.03, 0.018)
    pixels *= 1 - np.array([0.3, 0.7, 0.7]) * _spot(columns, rows - 0.16, 0.075, 0.02)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def angular() -> Image.Image:
    """Draw a face with straight edges: polygons, no curves."""
    image, draw = _canvas((44, 52, 74))
    draw.polygon([(40, 384), (90, 320), (294, 320), (344, 384)], fill=(120, 40, 60))
    draw.polygon([(110, 80), (274, 80), (290, 220), (192, 330), (94, 220)], fill=(222, 180, 150))
    draw.polygon([(192, 80), (274, 80), (290, 220), (192, 330)], fill=(198, 154, 126))
    hair = [(90, 150), (100, 50), (192, 24), (284, 50), (294, 150), (240, 100)]
    draw.polygon(hair, fill=(24, 22, 30))
    for x in (150, 234):
        draw.polygon([(x - 26, 176), (x, 162), (x + 26, 176), (x, 188)], fill=(240, 240, 240))
        draw.rectangle((x - 8, 166, x + 8, 184), fill=(40, 80, 60))
    draw.polygon([(160, 258), (192, 248), (224, 258), (192, 274)], fill=(150, 60, 60))
    return image


def painted() -> Image.Image:
    """Draw a face with overlapping brush strokes, on a grainy canvas."""
    rng = np.random.default_rng(3)
    image, draw = _canvas((186, 172, 150))
    for colour, box, count in (
        ((90, 110, 84), (0, 0, 384, 384), 500),
        ((70, 60, 90), (70, 320, 314, 384), 160),
        ((96, 66, 44), (92, 36, 292, 250), 320),
        ((214, 164, 132), (118, 84, 266, 316), 420),
    ):
        for _ in range(count):
            x, y = rng.uniform(box[:2], box[2:])
            shade = tuple(int(np.clip(c + rng.normal(0, 14), 0, 255)) for c in colour)
            a, b = rng.uniform(6, 22, 2)
            draw.ellipse((x - a, y - b, x + a, y + b), fill=shade)
    for x in (158, 226):
        draw.ellipse((x - 18, 168, x + 18, 190), fill=(236, 230, 220))
        draw.ellipse((x - 8, 170, x + 8, 188), fill=(60, 70, 90))
    draw.ellipse((162, 246, 222, 272), fill=(168, 76, 74))
    return image.filter(ImageFilter.GaussianBlur(2))


def example() -> Image.Image:
    """Take the middle of the portrait in ``examples/``, which another program draws."""
    with Image.open(EXAMPLE) as picture:
        width = picture.width
        return picture.convert("RGB").crop((0, 120, width, 120 + width))


PORTRAITS: Mapping[str, Callable[[], Image.Image]] = MappingProxyType(
    {f.__name__: f for f in (outlined, shaded, angular, painted, example)}
)


def animate(model: Model, portrait: Image.Image, chunks: int) -> tuple[dict[str, float], Any]:
    """Stream chunks of the bundled speech.

    Args:
        model: The model.
        portrait: RGB.
        chunks: Of the speech, which repeats.

    Returns:
        ``mean_frame_away`` and ``worst_away``, and frames for a row of the picture.
    """
    small = portrait.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    with AudioReader(SPEECH) as reader:
        wave = np.resize(np.concatenate(list(reader)), chunks * NEW_FRAMES * HOP)
    avatar = model.avatar(small)
    made = make_stream(model.pipeline, avatar, wave, StreamOptions(color_correction=1.0))
    frames = np.concatenate([chunk.frames for chunk in made])
    seen = np.asarray(small)
    lab = lab_of(seen)
    away_THW = ciede2000(lab_of(frames), lab)
    mean = np.round(frames.mean(axis=0)).astype(np.uint8)
    numbers = {
        "mean_frame_away": float(ciede2000(lab_of(mean), lab).mean()),
        "worst_away": float(away_THW.mean(dim=(1, 2)).max()),
    }
    chosen = frames[np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)]
    return numbers, np.concatenate([seen[None], chosen])


def _canvas(wall: tuple[int, int, int]) -> tuple[Image.Image, Draw]:
    image = Image.new("RGB", (SIDE * SCALE, SIDE * SCALE), wall)
    return image, ImageDraw.Draw(image)


def _spot(x: Any, y: Any, width: float, height: float) -> Any:
    return np.exp(-((x / width) ** 2) - (y / height) ** 2)[..., None]


def main() -> int:
    """Draw, animate, measure; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: the bundled one")
    parser.add_argument("--chunks", type=int, default=20, metavar="N", help="of 1.12 s each")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="a .json")
    args = parser.parse_args()
    try:
        model = Model.load(
            args.checkpoint,
            preset=None if args.checkpoint else "demo",
            audio_encoder=None,
            device="cpu",
            dtype="auto",
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    drawn = {name: draw() for name, draw in PORTRAITS.items()}
    for name, path in bundled_portraits().items():
        with Image.open(path) as picture:
            drawn[name] = picture.convert("RGB")
    found, rows = dict[str, dict[str, float]](), []
    for name, portrait in drawn.items():
        found[name], row = animate(model, portrait, args.chunks)
        rows.append(row)
        numbers = ", ".join(f"{key} {value:.1f}" for key, value in found[name].items())
        print(f"{name:10} {numbers}", flush=True)
    report = {"portraits": found, "chunks": args.chunks, "machine": machine()}
    write_json(args.output, report)
    with new_file(args.output.with_suffix(".png")) as file:
        frames = sheet(np.concatenate(rows), FRAMES + 1, len(rows))
        Image.fromarray(frames).save(file, "PNG", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
