"""The text of ``make gpu-report``: every result as a table, and what failed with its reason."""

import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from livetalk_kernels.units import data_size

TIMED, LEFT_OUT = "timed", "left out"
PUBLISHED = "published"
CELL = 160  # characters of a note

Result = Mapping[str, Any]


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A Markdown table; numbers to the right."""
    lines = [" | ".join(heads), " | ".join("---" if i == 0 else "---:" for i in range(len(heads)))]
    lines += [" | ".join(_cell(value) for value in row) for row in rows]
    return [*(f"| {line} |" for line in lines), ""]


def _cell(value: object) -> str:
    text = "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")[:CELL]


def hardware(facts: Result) -> str:
    """GPU or CPU, torch and commit, in one line."""
    machine, versions = facts.get("machine") or {}, facts.get("versions") or {}
    devices = facts.get("devices") or []
    name = machine.get("cpu", "an unknown machine")
    if devices:
        name = f"{len(devices)} x {devices[0]['name']}" if devices[1:] else devices[0]["name"]
    commit = machine.get("commit") or "unknown"
    return f"{name}, torch {versions.get('torch', 'unknown')}, commit {commit}"


def markdown(report: Result) -> str:
    """The whole page."""
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
            [f"**Left out of all that follows: {', '.join(report['excluded'])}.**", ""]
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
        write = SECTIONS.get(part["name"])
        body: list[str] = []
        if write is not None and part["result"]:
            try:
                body = write(part["result"])
            except (KeyError, TypeError, ValueError) as error:  # cut off while it was written
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


def machine_section(facts: Result) -> list[str]:
    """Hardware, versions and what is missing."""
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
    """Every backend once; those that cannot run here are only named."""
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


def build_section(result: Result) -> list[str]:
    """Which extensions were compiled."""
    built = [(name, result[name]) for name in ("cpu", "cuda") if name in result]
    rows = [(name, e["state"], f"{e['seconds']:.0f}", e["note"]) for name, e in built]
    return table(("kernels", "state", "s", "note"), rows)


def _race(rows: Sequence[Result]) -> list[str]:
    """What a race found: times, rates, and how much faster than each published way."""
    timed = [row for row in rows if row["state"] == TIMED]
    bases = list(dict.fromkeys(base for row in timed for base in row["against"]))
    bases = [base for base in bases if base.startswith(PUBLISHED)]
    heads = ("way", "ms p50", "p20 to p80", "TFLOP/s", "of floor", "error")
    body: list[Sequence[object]] = []
    for row in rows:
        if row["state"] != TIMED:
            body.append((row["name"], row["state"], row["note"], "", "", row["error"]))
            body[-1] = (*body[-1], *("" for _ in bases))
            continue
        seconds = row["seconds"]
        body.append(
            (
                row["name"] + (" (approximate)" if row.get("approximate") else ""),
                f"{seconds['p50'] * 1e3:.2f}",
                f"{seconds['p20'] * 1e3:.2f} to {seconds['p80'] * 1e3:.2f}",
                f"{row['tflop_per_s']:.3g}",
                f"{row['of_floor']:.0%}",
                f"{row['error']:.1e}",
                *(_times(row["against"].get(base)) for base in bases),
            )
        )
    return table((*heads, *(f"x {base}" for base in bases)), body)


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def step_section(result: Result) -> list[str]:
    """Every way to take a step."""
    settings, flops = result["settings"], result["flops"]
    height, width = settings["size"]
    total = sum(flops.values())
    share = flops["linears"] / total
    lines = [
        f"{settings['preset']} {height}x{width}, {settings['layers']} of "
        f"{settings['layers_of_preset']} layers, {settings['dtype']}, precision "
        f"{settings['precision']}; {total / 1e12:.4g} TFLOP, {share:.0%} of it in linear "
        "layers. Error: relative L2 against plain PyTorch, unquantised. x: how many times "
        "faster, median of the rounds.",
        "",
    ]
    if "lost" in result:
        lines += [f"**{result['lost']}**", ""]
    lines += _race(result.get("rows", []))
    rates: dict[str, float] = next(
        (row["rates"] for row in result.get("rows", []) if "rates" in row), {}
    )
    if not rates:
        return lines
    text = ", ".join(f"{rate / 1e12:.4g} TFLOP/s in {name}" for name, rate in rates.items())
    return [*lines, f"The floor is by large matrix products beside it: {text}.", ""]


def graphs_section(result: Result) -> list[str]:
    """Launches one by one against replays."""
    rows: list[Sequence[object]] = []
    for name, row in result["calls"].items():
        if row["state"] != TIMED:
            rows.append((name, row["state"], *[""] * 4, row["note"]))
            continue
        for way in ("eager", "graph"):
            own = row[way]
            gaps = own["gaps"]
            seen = ("", "", "")  # where the profiler saw nothing
            if gaps is not None:
                seen = (gaps["kernels"], f"{gaps['share']:.1%}", f"{own['idle']:.1%}")
            times = f"{row['ratio']:.3f}" if way == "graph" else ""
            rows.append((f"{name}, {way}", f"{own['seconds']['p50'] * 1e3:.3f}", *seen, times, ""))
    return table(("call", "ms p50", "kernels", "gaps", "idle", "x eager", "note"), rows)


def vae_section(result: Result) -> list[str]:
    """Decode step, chunk and encoder."""
    lines: list[str] = []
    for work, rows in result.get("work", {}).items():
        lines += [f"{work}, {result['flops'][work] / 1e12:.4g} TFLOP:", "", *_race(rows)]
    return lines


def ops_section(result: Result) -> list[str]:
    """Every backend of every case, and what was left out."""
    heads = ("op, case", "backend", "us p50", "GB/s", "TFLOP/s", "of floor", "x eager", "note")
    rows: list[Sequence[object]] = []
    for case in result["cases"]:
        for row in case["backends"]:
            name = f"{case['op']} {case['case']}, {case['dtype']}"
            if row["time"] is None:
                if row["state"] != LEFT_OUT:
                    rows.append((name, row["backend"], row["state"], *[""] * 4, row["note"]))
                continue
            rows.append(
                (
                    name, row["backend"] + ("*" if row["auto"] else ""),
                    f"{row['time']['p50'] * 1e6:.1f}", f"{row['gb_per_s']:.0f}",
                    f"{row['tflop_per_s']:.3g}", f"{row['of_floor']:.0%}",
                    _times(row["vs_eager"]), "approximate" if row["approximate"] else "",
                )
            )  # fmt: skip
    lines = [*table(heads, rows), "*: what auto picks.", ""]
    reasons: dict[str, list[str]] = {}
    for kind in ("failed", "skipped"):
        for entry in result[kind]:
            text = f"{kind}, {entry['reason']}"
            reasons.setdefault(text, []).append(f"{entry['op']} {entry['case']}")
    for reason, names in reasons.items():
        lines += [f"- {reason}: {', '.join(names)}"]
    return [*lines, ""]


def tests_section(result: Result) -> list[str]:
    """Counts, and the names of what failed."""
    counts = ("tests", "failures", "errors", "skipped")
    lines = table(counts, [[result[name] for name in counts]])
    return [*lines, *(f"- {name}" for name in result["wrong"]), ""]


def read_junit(path: Path) -> dict[str, Any] | None:
    """Counts and failed tests of a JUnit file; None where there is none, or only a part of it."""
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


def chunk_section(result: Result) -> list[str]:
    """Stages of every chunk, and frames per second."""
    names = list(dict.fromkeys(name for chunk in result["chunks"] for name in chunk["stages"]))
    rows = [
        (name, *(f"{chunk['stages'].get(name, 0.0):.3f}" for chunk in result["chunks"]))
        for name in names
    ]
    rows.append(("**all**", *(f"{chunk['seconds']:.3f}" for chunk in result["chunks"])))
    heads = ("stage, s", *(f"chunk {index + 1}" for index in range(len(result["chunks"]))))
    settings = result["settings"]
    lines = [
        f"{settings['steps']} steps, {settings['precision']}, {settings['layers']} layers; loaded "
        f"in {result['load']:.1f} s, first frame after {result['first_frame']:.2f} s. "
        "What runs beside other stages is in no sum.",
        "",
        *table(heads, rows),
    ]
    if "steady" in result:
        steady = result["steady"]
        lines += [
            f"p50 of {steady['count']}, all but the first: {steady['p50']:.3f} s a chunk, "
            f"{steady['fps']:.1f} frames/s, {steady['realtime_factor']:.2f} times real time.",
            "",
        ]
    memory = result.get("max_memory_bytes")
    return lines + ([f"Most memory: {data_size(memory)}.", ""] if memory else [])


def scaling_section(result: Result) -> list[str]:
    """Numbers of ranks."""
    rows: list[Sequence[object]] = []
    for row in result["runs"]:
        if "chunk" not in row:
            rows.append((row["ranks"], row["state"], *[""] * 5, row["note"]))
            continue
        quality = "equal" if row["identical"] else f"{row['psnr'] or 0:.1f} dB"
        rows.append(
            (
                row["ranks"], row["chunk"]["count"], f"{row['chunk']['p50']:.3f}",
                f"{row['chunk']['fps']:.1f}", f"{row['speedup']:.2f}",
                f"{row['efficiency']:.0%}", quality, row["note"],
            )
        )  # fmt: skip
    heads = (
        "ranks", "chunks", "s a chunk", "frames/s", "speed-up", "efficiency", "frames", "note",
    )  # fmt: skip
    text = (
        "One after the other; p50 of so many chunks, the first left out; frames against the "
        "fewest ranks."
    )
    return [text, "", *table(heads, rows)]


def comm_section(result: Result) -> list[str]:
    """Patterns of messages; the link's own sizes are left to the JSON."""
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
    """The summary; the rest lies in the folder ``profile``."""
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


def telemetry(parts: Sequence[Result]) -> list[str]:
    """Clocks, power and so on while each part ran; nothing without NVML."""
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


SECTIONS: Mapping[str, Callable[[Result], list[str]]] = {
    "facts": machine_section,
    "smoke": smoke_section,
    "build": build_section,
    "smoke-cuda": smoke_section,
    "build-cpu": build_section,
    "step": step_section,
    "graphs": graphs_section,
    "vae": vae_section,
    "ops": ops_section,
    "tests": tests_section,
    "chunk": chunk_section,
    "chunk-fp8": chunk_section,
    "scaling": scaling_section,
    "comm": comm_section,
    "profile": profile_section,
}
