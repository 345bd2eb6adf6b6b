"""Text of ``make gpu-report``: every result as a table, and every failure with its reason."""

import importlib
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from livetalk_kernels.units import data_size

LEFT_OUT = "left out"
CELL = 160  # characters per note
COLUMNS = {"SM clock": 1, "power": 1, "temperature": 1, "utilisation": 1, "memory": 1e-9}
"""Displayed columns of a GPU's samples, and their scale."""

Result = Mapping[str, Any]


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Format a Markdown table, with numbers right-aligned."""
    lines = [" | ".join(heads), " | ".join("---" if i == 0 else "---:" for i in range(len(heads)))]
    lines += [" | ".join(_cell(value) for value in row) for row in rows]
    return [*(f"| {line} |" for line in lines), ""]


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")[:CELL]


def hardware(facts: Result) -> str:
    """Summarise GPU or CPU, torch and commit in one line."""
    machine, versions = facts.get("machine") or {}, facts.get("versions") or {}
    devices = facts.get("devices") or []
    name = machine.get("cpu", "an unknown machine")
    if devices:
        name = f"{len(devices)} x {devices[0]['name']}" if devices[1:] else devices[0]["name"]
    commit = machine.get("commit") or "unknown"
    return f"{name}, torch {versions.get('torch', 'unknown')}, commit {commit}"


def markdown(report: Result) -> str:
    """Format the whole page."""
    facts, settings = report["facts"], report["settings"]
    lines = [
        "# livetalk on this machine",
        "",
        f"{hardware(facts)}. {facts.get('date', '')}",
        "",
        f"    {report['command']}",
        "",
        f"Preset {settings['preset']} with random weights on {settings['device']}; "
        f"{report['budget']:.0f} s for all parts. Code {report['code'] or 'unknown'}.",
        "",
        *([f"**{report['problem']}**", ""] if report["problem"] else []),
        *(
            [f"**Excluded from everything below: {', '.join(report['excluded'])}.**", ""]
            if report.get("excluded")
            else []
        ),
        "## Parts",
        "",
        *table(
            ("part", "status", "s", "what it says", "log"),
            [
                (
                    f"{part['name']}: {part['title']}",
                    part["status"] + (" (before)" if part.get("kept") else ""),
                    f"{part['seconds']:.0f}",
                    part["reason"],
                    part.get("log", ""),
                )
                for part in report["parts"]
            ],
        ),
    ]
    for part in report["parts"]:
        body: list[str] = []
        if part["result"]:
            try:
                body = section(part["name"], part["result"])
            except (ImportError, KeyError, TypeError, ValueError) as error:  # cut off, or no torch
                body = [f"The result cannot be read: {type(error).__name__} {error}.", ""]
        if body or part.get("tail"):
            lines += [f"## {part['title'][0].upper()}{part['title'][1:]}", "", *body]
        if part.get("command") and (body or part.get("tail")):
            lines += [f"    {part['command']}", ""]
        if part.get("tail"):
            tail = part["tail"]
            lines += [f"It failed: {part['reason']}. The end of {part['log']}:", ""]
            lines += ["```", *tail, "```", ""]
        for plot in report["plots"]:
            if plot.partition(".")[0].removesuffix("-roofline") == part["name"]:
                lines += [f"![{part['title']}]({plot})", ""]
    lines += telemetry(report["parts"])
    if report["plots_missing"]:
        lines += [f"There are no plots: {report['plots_missing']}.", ""]
    return "\n".join(lines)


def section(part: str, result: Result) -> list[str]:
    """Format a part's result; if a script made it, as the script prints it."""
    if part in SECTIONS:
        return SECTIONS[part](result)
    if part not in SCRIPTS:
        return []
    text: str = importlib.import_module(SCRIPTS[part]).table(result)
    return ["```", *text.splitlines(), "```", ""]


def machine_section(facts: Result) -> list[str]:
    """Format hardware, versions and what is missing."""
    machine, versions = facts.get("machine") or {}, facts.get("versions") or {}
    rows: list[tuple[str, object]] = [
        ("CPU", f"{machine.get('cpu')}, {facts['cores']} cores"),
        ("system", facts["system"]),
        ("python", facts["python"]),
        *((name, value) for name, value in versions.items()),
        ("CPU kernels", machine.get("kernels")),
        ("C++ compiler", facts["compiler"]),
        ("nvcc", facts["nvcc"]),
    ]
    for index, gpu in enumerate(facts.get("devices") or []):
        text = f"{gpu['name']}, {data_size(gpu['memory_bytes'])}, {gpu['multiprocessors']} SMs"
        rows.append((f"GPU {index}", f"{text}, reaches {gpu['peers'] or 'no other'}"))
    lines = table(("", ""), rows)
    packages = facts["packages"]
    have = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    gone = ", ".join(name for name, version in packages.items() if not version)
    lines += [f"Packages: {have}. Not installed: {gone or 'none'}.", ""]
    lines += [f"Not known: {problem}." for problem in facts["problems"]]
    for name in ("nvidia_smi", "topology"):
        if facts[name]:
            lines += ["```", *facts[name], "```", ""]
    return lines


def smoke_section(result: Result) -> list[str]:
    """Format every backend's first call; those that cannot run here are only named."""
    rows = [
        (
            f"{row['op']} {row['case']}", row["backend"], row["state"],
            row["seconds"] and f"{row['seconds']:.3f}", row["error"], row["note"],
        )
        for row in result["rows"] if row["state"] != LEFT_OUT
    ]  # fmt: skip
    heads = ("op, case", "backend", "state", "s, first call", "error", "note")
    lines = [f"**{result['problem']}**", ""] if result["problem"] else []
    lines += ["Error: relative L2 against the reference in the same dtype.", ""]
    lines += table(heads, rows)
    reasons: dict[str, list[str]] = {}
    for row in result["rows"]:
        if row["state"] == LEFT_OUT:
            reasons.setdefault(row["note"], []).append(f"{row['op']}={row['backend']}")
    return [*lines, *(f"- {why}: {', '.join(names)}" for why, names in reasons.items()), ""]


def tests_section(result: Result) -> list[str]:
    """Format test counts, and the names of failures."""
    counts = ("tests", "failures", "errors", "skipped")
    lines = table(counts, [[result[name] for name in counts]])
    return [*lines, *(f"- {name}" for name in result["wrong"]), ""]


def read_junit(path: Path) -> dict[str, Any] | None:
    """Read counts and failures from a JUnit file; None if it is missing or truncated."""
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError):
        return None
    suites = list(root.iter("testsuite"))
    found: dict[str, Any] = {
        name: sum(int(suite.get(name, 0)) for suite in suites)
        for name in ("tests", "failures", "errors", "skipped")
    }
    found["wrong"] = [
        f"{case.get('classname')} {case.get('name')}: {(child.get('message') or '')[:CELL]}"
        for case in root.iter("testcase")
        for child in case
        if child.tag in ("failure", "error")
    ]
    return found


def comm_section(result: Result) -> list[str]:
    """Format message patterns; the link's own sizes are only in the JSON."""
    rows = [
        (
            row["pattern"], row["bytes"],
            row["time"] and f"{row['time']['p50'] * 1e6:.1f}",
            row["gb_per_s"] and f"{row['gb_per_s']:.2f}",
            row["of_link"] and f"{row['of_link']:.0%}", row["note"] or row["state"],
        )
        for row in result["patterns"] if row["kind"] != "link"
    ]  # fmt: skip
    link = result["link"]["both_ways"]
    lines = table(("pattern", "bytes", "us p50", "GB/s", "of the link", "state"), rows)
    if link is not None:
        text = f"The link: pairs of neighbours at once, {link['gb_per_s']:.2f} GB/s each way."
        lines += [text, ""]
    return lines


def profile_section(result: Result) -> list[str]:
    """Format the summary; the rest is in the folder ``profile``."""
    summary = result["summary"]
    rows = [
        (f"{row['stage']} {row['part']}", row["p50"], row["p95"], f"{row['share']:.1%}")
        for row in summary["stages"]
    ]
    lines = [
        f"Preset {result['settings']['model']}: {summary['fps']:.1f} frames/s of "
        f"{summary['chunk']['count']} chunks. More is in profile/report.md.",
        "",
    ]
    return [*lines, *table(("stage", "s p50", "s p95", "share"), rows)]


def clocks(
    samples: Mapping[str, Sequence[float | None]], uuids: Sequence[str]
) -> list[dict[str, Any]]:
    """Compute median and maximum of `Telemetry`'s samples since a part began, per GPU.

    Args:
        samples: Column -> values, as in `Telemetry.as_json`; columns begin with a UUID.
        uuids: The GPUs in torch's order, which numbers them: it may see fewer than NVML, in
            another order (CUDA_VISIBLE_DEVICES). Empty: all, in NVML's.
    """
    known = dict.fromkeys(name.partition(" ")[0] for name in samples if name != "t")
    rows = []
    for index, uuid in enumerate(uuids or known):
        row: dict[str, Any] = {"gpu": index}
        for name, scale in COLUMNS.items():
            pairs = zip(samples["t"], samples.get(f"{uuid} {name}", ()), strict=False)
            values = [v * scale for t, v in pairs if v is not None and t is not None and t >= 0]
            row[name] = {"median": median(values), "most": max(values)} if values else None
        rows.append(row)
    return rows if known else []


def telemetry(parts: Sequence[Result]) -> list[str]:
    """Format clocks, power and so on while each part ran; nothing without NVML."""
    rows = []
    names: list[str] = []
    for part in parts:
        for gpu in part.get("telemetry") or []:
            names = [name for name in gpu if name != "gpu"]
            values = [gpu[name] for name in names]
            cells = [v and f"{v['median']:.0f} / {v['most']:.0f}" for v in values]
            rows.append((part["name"], gpu["gpu"], *cells))
    if not rows:
        return ["There is no telemetry: no NVML, or no pynvml (nvidia-ml-py).", ""]
    heads = ("part", "GPU", *names)
    text = "Median / most: MHz, W, °C, %, GB."
    return ["## Telemetry", "", text, "", *table(heads, rows)]


SCRIPTS = {
    "step": "step",
    "graphs": "graphs",
    "vae": "vae",
    "ops": "ops_all",
    "chunk": "stream",
    "chunk-fp8": "stream",
    "scaling": "scaling",
}
SECTIONS: Mapping[str, Callable[[Result], list[str]]] = {
    "facts": machine_section,
    "smoke": smoke_section,
    "smoke-cuda": smoke_section,
    "tests": tests_section,
    "comm": comm_section,
    "profile": profile_section,
}
