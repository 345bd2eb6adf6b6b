"""Writes an evaluation's report: JSON, a page, and its plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from livetalk_kernels.outputs import new_file, write_json, write_text

from .markdown import markdown
from .plot import draw


def write_files(report: Mapping[str, Any], *, json: Path, md: Path, png: Path) -> None:
    """Write all three, replacing what is there.

    Args:
        report: From `report.make_report`, with command and settings.
        json: All values.
        md: Tables; shows ``png``.
        png: Measures by chunk.

    Raises:
        UserError: A file cannot be written.
    """
    write_json(json, report, indent=None)
    write_text(md, markdown(report, png.name))
    with new_file(png) as picture:
        picture.write(draw(report))
