"""Compares two profiles: what differs, and which stage has become slower.

Alternating chunks are compared pair by pair, those of two reports as two samples (see
`livetalk_kernels.bench.compare`). The whole chunk is the question; its stages share the probability
of a false alarm among them, so a table of many rows is hardly more often wrong than one row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from livetalk_kernels.bench.compare import (
    ALARM,
    MIN_SAMPLES,
    Change,
    paired,
    unpaired,
)
from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import REPORT_BYTES, read_json

from .paced import Worker

REPORT = "report.json"
SCHEMA = "livetalk/profile/1"
ANOTHER_MACHINE = "another machine"  # the verdict if nothing can be said about the program
CHUNK, UNATTRIBUTED = "chunk", "unattributed"
LEAST_SHARE = 0.01  # of a chunk; shorter stages have no row
RESOLUTION = 0.08
"""Slowdown that should be detectable: with more noise than that permits, pairs continue."""
MOST = 4  # maximum number of pairs, as a multiple of those requested
_BLOCK = 5  # pairs between two checks of the noise
HARDWARE = ("cpu", "cores", "cpu_quota", "gpu.name", "gpu.count")
"""Facts that identify a machine: if they differ, it is another one."""
SURROUNDINGS = ("torch", "triton", "threads", "gpu.driver", "gpu.cuda")
"""Facts that change times on the same machine."""
PASSING = {"date"}  # facts in the machine's entry that do not describe it

Chunk = Mapping[str, Any]
"""``seconds``, ``stages`` {stage: {part: s}}, ``unattributed``; as in a profile's report."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A chunk, or one of its stages.

    Attributes:
        name: ``chunk``, the stage's name, or ``unattributed``.
        share: Fraction of the chunk's time, the larger of both.
        a: Median seconds per chunk; None if A lacks the stage.
        b: The same for B.
        change: From A to B; None if one of them lacks the stage, or has it only sometimes.
    """

    name: str
    share: float
    a: float | None
    b: float | None
    change: Change | None

    @property
    def verdict(self) -> str:
        """Verdict in words."""
        if self.change is not None:
            return self.change.verdict
        if self.a is None or self.b is None:
            return "only in B" if self.a is None else "only in A"
        return "not in all"

    def as_json(self) -> dict[str, Any]:
        """Convert to plain values; times in seconds."""
        change = None if self.change is None else asdict(self.change)
        return {
            "row": self.name,
            "share": self.share,
            "a_p50": self.a,
            "b_p50": self.b,
            "change": change,
            "verdict": self.verdict,
        }


def compare_chunks(
    a: Sequence[Chunk],
    b: Sequence[Chunk],
    *,
    interleaved: bool,
    tolerance: float | None = None,
) -> list[Row]:
    """Build a row for the chunk, and one for every stage that takes at least 1 % of it.

    Args:
        a: Chunks of the first.
        b: Chunks of the second; if interleaved, equally many, in the order A B, B A, ...
        interleaved: Whether they alternated.
        tolerance: Change that is not reported; by default the usual one of `bench.compare`.
    """
    sides = [_series(a), _series(b)]
    totals = [float(np.sum(side[CHUNK])) for side in sides]
    found = dict.fromkeys([*sides[0], *sides[1]])
    names = [name for name in found if name not in (CHUNK, UNATTRIBUTED)] + [UNATTRIBUTED]

    def share(name: str) -> float:
        sums = [float(np.sum(side.get(name, 0.0))) for side in sides]
        return max(part / total for part, total in zip(sums, totals, strict=True))

    stages = [name for name in names if share(name) >= LEAST_SHARE]
    compare = paired if interleaved else unpaired
    options = {} if tolerance is None else {"tolerance": tolerance}
    rows = []
    for name in (CHUNK, *stages):
        alarm = ALARM if name == CHUNK else ALARM / len(stages)
        series = [side.get(name) for side in sides]
        medians = [None if x is None else float(np.median(x)) for x in series]
        change = None
        if all(x is not None and min(x) > 0 for x in series):
            change = compare(*series, alarm=alarm, **options)  # type: ignore[arg-type]
        rows.append(Row(name=name, share=share(name), a=medians[0], b=medians[1], change=change))
    return rows


def _series(chunks: Sequence[Chunk]) -> dict[str, list[float]]:
    """Return row -> seconds in every chunk; stages that occur in none are omitted."""
    found = {CHUNK: [float(chunk["seconds"]) for chunk in chunks]}
    for stage in dict.fromkeys(stage for chunk in chunks for stage in chunk["stages"]):
        found[stage] = [float(sum(chunk["stages"].get(stage, {}).values())) for chunk in chunks]
    found[UNATTRIBUTED] = [float(chunk["unattributed"]) for chunk in chunks]
    return {name: series for name, series in found.items() if name == CHUNK or any(series)}


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List what differs between nested mappings: ``[{"what": "a.b.c", "a": value, "b": value}]``.

    A missing value is None.
    """
    flat_a, flat_b = dict(_flat(a)), dict(_flat(b))
    return [
        {"what": name, "a": flat_a.get(name), "b": flat_b.get(name)}
        for name in dict.fromkeys([*flat_a, *flat_b])
        if flat_a.get(name) != flat_b.get(name)
    ]


def _flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            found += _flat(inner, f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", inner))
    return found


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two profiles, and how they differ.

    Attributes:
        names: The user's names for them: folders, or options.
        interleaved: Whether they alternated; if not, changes include drift of the machine.
        settings: Settings of each.
        changed: What differs in settings and machine (see `differences`).
        chunks: Chunks of each.
        rows: Rows, the chunk's first.
    """

    names: tuple[str, str]
    interleaved: bool
    settings: tuple[Mapping[str, Any], Mapping[str, Any]]
    changed: list[dict[str, Any]]
    chunks: tuple[Sequence[Chunk], Sequence[Chunk]]
    rows: list[Row]

    @property
    def elsewhere(self) -> list[dict[str, Any]]:
        """Known differences between the machines."""
        return self._facts(HARDWARE)

    @property
    def otherwise(self) -> list[dict[str, Any]]:
        """Differences in versions and threads."""
        return self._facts(SURROUNDINGS)

    def _facts(self, names: Sequence[str]) -> list[dict[str, Any]]:
        known = {f"machine.{name}": name for name in names}
        return [
            {**entry, "what": known[entry["what"]]}
            for entry in self.changed
            if entry["what"] in known
        ]

    @property
    def change(self) -> Change:
        """Change of the whole chunk."""
        change = self.rows[0].change
        assert change is not None
        return change

    def as_json(self) -> dict[str, Any]:
        """Convert to plain values, with all samples; times in seconds."""
        sides = {
            side: {"name": name, "settings": settings, "chunks": list(chunks)}
            for side, name, settings, chunks in zip(
                "ab", self.names, self.settings, self.chunks, strict=True
            )
        }
        return {
            "schema": "livetalk/compare/1",
            "interleaved": self.interleaved,
            **sides,
            "changed": self.changed,
            "other_machine": self.elsewhere,
            "other_surroundings": self.otherwise,
            "rows": [row.as_json() for row in self.rows],
            "verdict": ANOTHER_MACHINE if self.elsewhere else self.change.verdict,
        }


def compare_workers(
    names: tuple[str, str],
    workers: tuple[Worker, Worker],
    pairs: int,
    say: Callable[[str, str], None],
) -> Comparison:
    """Start two profiles, let them load one after the other, then alternate chunks.

    Both processes have ended when this returns or raises. An initial pair is not counted. If times
    are so noisy that a slowdown of `RESOLUTION` could be missed, more pairs follow; when to stop
    depends only on the interval's width, not on its position.

    Args:
        names: The user's names for the two.
        workers: Workers that are not started yet.
        pairs: Minimum number of pairs; the maximum is `MOST` times as many.
        say: Called with progress: a heading and a text.

    Raises:
        UserError: The options of one are invalid.
        WorkerError: One of them has failed.
    """
    done = False
    try:
        for worker in workers:
            worker.start()  # both, so that bad options are reported before a model is loaded
        settings = []
        for worker in workers:
            say(f"{worker.name}: loads and warms up", "")
            settings.append(worker.load())
        chunks: tuple[list[Chunk], list[Chunk]] = ([], [])
        for pair in range(-1, MOST * pairs):
            if pair >= pairs and (pair - pairs) % _BLOCK == 0 and not _noisy(*chunks):
                break
            say("A and B take turns", f"pair {max(pair, 0) + 1} of {max(pairs, pair + 1)}")
            for side in (1, 0) if pair % 2 else (0, 1):
                chunk = workers[side].chunk()
                if pair >= 0:
                    chunks[side].append(chunk)
        done = True
    finally:
        for worker in workers:
            worker.close(interrupt=not done)
    return Comparison(
        names=names,
        interleaved=True,
        settings=(settings[0], settings[1]),
        changed=differences({"settings": settings[0]}, {"settings": settings[1]}),
        chunks=chunks,
        rows=compare_chunks(*chunks, interleaved=True),
    )


def _noisy(a: Sequence[Chunk], b: Sequence[Chunk]) -> bool:
    """Return whether a slowdown of `RESOLUTION` could be missed."""
    change = paired([chunk["seconds"] for chunk in a], [chunk["seconds"] for chunk in b])
    return change.detectable > RESOLUTION


def compare_folders(a: Path, b: Path) -> Comparison:
    """Compare the output folders of two profiles.

    Raises:
        UserError: A report is missing, damaged, or holds too few chunks.
    """
    reports = [read_report(folder) for folder in (a, b)]
    facts = [
        {
            "settings": report["settings"],
            "machine": {k: v for k, v in report["machine"].items() if k not in PASSING},
        }
        for report in reports
    ]
    chunks = (reports[0]["chunks"], reports[1]["chunks"])
    return Comparison(
        names=(str(a), str(b)),
        interleaved=False,
        settings=(reports[0]["settings"], reports[1]["settings"]),
        changed=differences(*facts),
        chunks=chunks,
        rows=compare_chunks(*chunks, interleaved=False),
    )


def read_report(folder: Path) -> dict[str, Any]:
    """Read the report in a folder of ``livetalk profile``, as far as needed for a comparison.

    Raises:
        UserError: It is missing, damaged, or holds too few chunks.
    """
    path = folder / REPORT
    report = read_json(path, "report", cure="profile again", limit=REPORT_BYTES)
    try:
        schema, series = report["schema"], _series(report["chunks"])
        facts = isinstance(report["settings"], dict) and isinstance(report["machine"], dict)
        if not facts or not np.isfinite([x for row in series.values() for x in row]).all():
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{path}: is not a report of 'livetalk profile'; profile again") from None
    if schema != SCHEMA:
        raise UserError(
            f"{path}: its schema is {schema}, this version reads {SCHEMA}; profile again"
        )
    if len(report["chunks"]) < MIN_SAMPLES:
        raise UserError(
            f"{path}: holds {len(report['chunks'])} chunks, too few to tell noise from a change; "
            f"profile at least {MIN_SAMPLES}"
        )
    if min(series[CHUNK]) <= 0:
        raise UserError(f"{path}: a chunk took no time; profile again")
    return dict(report)
