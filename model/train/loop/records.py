"""``metrics.jsonl``: a header, and a line for each recorded update."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import is_file, read_bytes
from livetalk_kernels.outputs import json_bytes, new_file, output_error

METRICS = "metrics.jsonl"
VERSION = 1
_MOST_BYTES = 1 << 30  # ten million lines


class Records:
    """The file, open for appending. Each line is written at once, so readers see whole lines."""

    def __init__(self, path: Path, *, after: int = 0) -> None:
        """Create a file, or continue one.

        Args:
            path: The file.
            after: The last update that counts: later lines, left by a killed run, are removed, and
                so is a partial line.

        Raises:
            UserError: The file has another format or cannot be written.
        """
        self.path = path
        lines = [entry for entry in read_records(path) if entry["step"] <= after]
        with new_file(path) as file:
            file.write(json_bytes({"livetalk_metrics": VERSION}))
            file.writelines(json_bytes(entry) for entry in lines)
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise output_error(path, error) from None

    def add(self, entry: Mapping[str, Any]) -> None:
        """Append a line; numbers must be finite.

        Raises:
            UserError: The disk is full.
        """
        try:
            os.write(self._descriptor, json_bytes(dict(entry)))
        except OSError as error:
            raise output_error(self.path, error) from None

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a metrics file, without its header and any partial line at its end.

    Raises:
        UserError: The file has another format, or is damaged.
    """
    if not is_file(path):
        return []
    data = read_bytes(path, "metrics", limit=_MOST_BYTES)
    whole = data[: data.rfind(b"\n") + 1].splitlines()
    try:
        header, *lines = [json.loads(line) for line in whole]
        known = header["livetalk_metrics"] == VERSION and all(
            type(entry["step"]) is int for entry in lines
        )
    except (ValueError, TypeError, KeyError):
        known = False
    if not known:
        raise UserError(
            f"{path}: is not a file of metrics of version {VERSION}; move it away, or use another "
            "folder"
        )
    return lines
