"""The folder of a profile: report, traces, plots and text."""

import json
from pathlib import Path
from typing import Any

from livetalk_kernels.outputs import write_json, write_text

from .markdown import report_markdown
from .plots import PICTURES, draw_all

REPORT, TEXT = "report.json", "report.md"


def write_files(folder: Path, report: dict[str, Any], trace: dict[str, Any]) -> None:
    """Write all files, after removing those of an earlier run.

    The report is written before the plots, so that a failure to draw costs no measurement, and
    again with their names.
    """
    names = [f"trace.rank{entry['rank']}.json" for entry in report["ranks"]]
    old = {folder / name for name in (REPORT, TEXT, *PICTURES)} | set(folder.glob("trace.rank*"))
    for stale in old - {folder / name for name in names[1:]}:  # these are just written
        stale.unlink(missing_ok=True)
    write_json(folder / names[0], trace, indent=None)
    report["files"] = [names[0], REPORT]
    write_json(folder / REPORT, report, indent=None)
    here = [name for name in names[1:] if (folder / name).is_file()]  # others' machines keep theirs
    traces = [trace, *(json.loads((folder / name).read_text("utf-8")) for name in here)]
    pictures = draw_all(report, traces, folder)
    report["files"] = [names[0], *here, *pictures, TEXT, REPORT]
    write_text(folder / TEXT, report_markdown(report))
    write_json(folder / REPORT, report, indent=None)
