"""Generate the table of profiles/README.md from the reports and their data.

    python benchmarks/profiles_index.py            # rewrites it
    python benchmarks/profiles_index.py --check    # fails where it is stale

What a report must have for it is described in profiles/README.md.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from livetalk_kernels.outputs import write_text

PROFILES = Path(__file__).resolve().parent.parent / "profiles"
BEGIN = "<!-- index: made by benchmarks/profiles_index.py -->"
END = "<!-- end of index -->"
HEAD = ("report", "question", "hardware", "date", "commit", "data")


class ReportError(Exception):
    """A report or data file that does not fit the index, and what to do about it."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data file's origin, as far as it states it.

    Attributes:
        hardware: Machine it was measured on, or that was compiled for.
        date: Day, such as ``2026-11-20``.
        commit: Commit of the repository.
    """

    hardware: str
    date: str
    commit: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """A report in the folder.

    Attributes:
        path: The file.
        title: Its first heading.
        question: The question it answers.
        data: The data files that it links to.
    """

    path: Path
    title: str
    question: str
    data: tuple[Path, ...]


def read_report(path: Path) -> Report:
    """Read a report.

    Raises:
        ReportError: It has no title or question, or a link that leads nowhere.
    """
    text = path.read_text(encoding="utf-8")
    question = re.match(r"<!-- question: (\S.*?) -->\n", text)
    title = re.search(r"^# (\S.*)$", text, re.MULTILINE)
    if question is None or title is None:
        raise ReportError(
            f"{path.name}: begin it with '<!-- question: ... -->' and '# its title' in lines of "
            "their own"
        )
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text)
    local = [path.parent / link for link in links if "://" not in link]
    for target in local:
        if not target.exists():
            raise ReportError(f"{path.name}: links to {target.name}, which does not exist; fix it")
    data = dict.fromkeys(target.resolve() for target in local if target.suffix == ".json")
    return Report(path=path, title=title[1], question=question[1], data=tuple(data))


def read_source(path: Path) -> Source:
    """Read a data file's origin: its ``machine``, or ``target``, ``date`` and ``commit``."""
    content = json.loads(path.read_text(encoding="utf-8"))
    machines = list(_machines(content))
    top = content if isinstance(content, dict) else {}
    compiled = f"compiled for {top['target']}" if "target" in top else ""
    return Source(
        hardware=_joined([*map(_hardware, machines), compiled]),
        date=_joined([top.get("date", ""), *(entry.get("date", "") for entry in machines)]),
        commit=_joined([top.get("commit", ""), *(entry.get("commit", "") for entry in machines)]),
    )


def _machines(content: Any) -> Iterator[dict[str, Any]]:
    """Yield every ``machine`` in a result, at any depth of dictionaries."""
    if not isinstance(content, dict):
        return
    for name, value in content.items():
        if name == "machine" and isinstance(value, dict):
            yield value
        else:
            yield from _machines(value)


def _hardware(machine: dict[str, Any]) -> str:
    """Name the GPU, else the CPU with its cores."""
    gpu = machine.get("gpu")
    if gpu:
        return str(gpu["name"])
    cores = f", {machine['cores']} cores" if "cores" in machine else ""
    return f"{machine['cpu']}{cores}"


def _joined(values: list[str]) -> str:
    """Join distinct values, without those that another merely extends."""
    given = list(dict.fromkeys(filter(None, values)))
    kept = [v for v in given if not any(o != v and o.startswith(f"{v}, ") for o in given)]
    return "; ".join(kept)


def table(folder: Path) -> str:
    """Build the index.

    Raises:
        ReportError: See `read_report`; or a data file belongs to no report.
    """
    reports = [read_report(p) for p in sorted(folder.glob("*.md")) if p.name != "README.md"]
    known = {file for report in reports for file in report.data}
    for file in sorted((folder / "data").rglob("*.json")):
        if file.resolve() not in known:
            raise ReportError(f"{file.name}: no report links to it; link to it, or remove it")
    lines = [HEAD, ["---"] * len(HEAD), *(_row(report, folder) for report in reports)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(report: Report, folder: Path) -> list[str]:
    sources = [read_source(file) for file in report.data]
    common = re.search(r"(_[^_]+_\d{6})$", report.path.stem)  # hardware and month
    links = [
        f"[{file.stem.removesuffix(common[1] if common else '')}]"
        f"({file.relative_to(folder.resolve()).as_posix()})"
        for file in report.data
    ]
    dates = sorted({day for source in sources for day in source.date.split("; ") if day})
    cells = [
        f"[{report.title}]({report.path.name})",
        report.question,
        _joined([part for source in sources for part in source.hardware.split("; ")]),
        " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else "",
        _joined([part for source in sources for part in source.commit.split("; ")]),
        ", ".join(links),
    ]
    return [cell.replace("|", "\\|") for cell in cells]


def with_table(text: str, new: str) -> str:
    """Replace the table between its markers in a README.

    Raises:
        ReportError: The markers are missing.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ReportError(f"README.md: needs the lines '{BEGIN}' and '{END}' around the table")
    return f"{before}{BEGIN}\n\n{new}\n\n{END}{after}"


def main() -> int:
    """Rewrite or check the index; return the exit code."""
    parser = argparse.ArgumentParser(description="Make the table of profiles/README.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is stale")
    parser.add_argument("--folder", type=Path, default=PROFILES, help="default: profiles")
    args = parser.parse_args()
    readme = args.folder / "README.md"
    try:
        old = readme.read_text(encoding="utf-8")
        new = with_table(old, table(args.folder))
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.check:
        if new != old:
            print(f"error: {readme.name} is stale; run {Path(__file__).name}", file=sys.stderr)
        return int(new != old)
    write_text(readme, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
