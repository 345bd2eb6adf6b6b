"""Lay out frames of a video, evenly spread, in one picture.

python benchmarks/contact_sheet.py out/demo.mp4 profiles/demo_epyc2c_202611.png
"""

import argparse
import sys
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from livetalk_kernels.outputs import new_file


def sheet(frames_THWC: NDArray[np.uint8], columns: int, rows: int) -> NDArray[np.uint8]:
    """Lay frames out row by row, uint8 [rows * H, columns * W, 3].

    Args:
        frames_THWC: The video; frames of a shorter one repeat.
        columns: Frames per row.
        rows: Number of rows.
    """
    chosen = np.linspace(0, len(frames_THWC) - 1, columns * rows).round().astype(int)
    lines = frames_THWC[chosen].reshape(rows, columns, *frames_THWC.shape[1:])
    return np.asarray(lines.transpose(0, 2, 1, 3, 4).reshape(rows * lines.shape[2], -1, 3))


def main() -> int:
    """Read, lay out, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("picture", type=Path, help="a PNG")
    parser.add_argument("--columns", type=int, default=8, metavar="N")
    parser.add_argument("--rows", type=int, default=2, metavar="N")
    args = parser.parse_args()
    with av.open(str(args.video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    picture = Image.fromarray(sheet(np.stack(frames), args.columns, args.rows))
    with new_file(args.picture) as file:
        picture.save(file, "PNG", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
