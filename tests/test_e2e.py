"""The end-to-end suites run, and hold themselves against a baseline."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from livetalk_kernels.errors import UserError
from livetalk_kernels.outputs import write_json

SUITES = Path(__file__).resolve().parent.parent / "benchmarks/e2e"
SETTINGS = {"preset": "tiny", "device": "cpu", "dtype": "float32"}
MACHINE = {"cpu": "this", "cores": 2, "memory_bytes": 8, "threads": 1, "gpu": None, "date": "x"}


def run(*options: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    # Where this suite itself is divided, pytest-benchmark would take the session for a part of it.
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    return subprocess.run(
        [*command, *map(str, options)],
        capture_output=True, text=True, check=False, timeout=280, env=env,
    )  # fmt: skip


@pytest.fixture(scope="module")
def baseline() -> Iterator[ModuleType]:
    """The suites' own module."""
    sys.path.insert(0, str(SUITES))
    try:
        import baseline

        yield baseline
    finally:
        sys.path.remove(str(SUITES))
        sys.modules.pop("baseline", None)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a session writes."""
    path = tmp_path_factory.mktemp("e2e") / "saved.json"
    done = run(SUITES / "test_bench_vae.py", "--rounds", 8, "--benchmark-json", path)
    assert done.returncode == 0, done.stdout + done.stderr
    return path


def test_the_other_benchmarks_are_checked_and_run() -> None:
    chosen = "not vae and not ranks[1]"
    done = run(SUITES, "--benchmark-disable", "--device", "cpu", "-k", chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout


def test_a_regression_fails_the_session(saved: Path, tmp_path: Path) -> None:
    """The baseline says that encoding took a tenth of the time, and decoding ten times as long."""
    before = json.loads(saved.read_text())
    for entry in before["benchmarks"]:
        factor = 0.1 if entry["name"] == "test_encode" else 10
        entry["stats"]["data"] = [factor * seconds for seconds in entry["stats"]["data"]]
        assert entry["extra_info"]["settings"] == SETTINGS
        assert len(entry["extra_info"]["probe"]) == len(entry["stats"]["data"]) == 8
    (tmp_path / "before.json").write_text(json.dumps(before))
    done = run(SUITES / "test_bench_vae.py", "--rounds", 8, "--baseline", tmp_path / "before.json")
    assert done.returncode == 1, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("REGRESSION")]
    assert len(lines) == 1 and "test_bench_vae.py::test_encode: slower" in lines[0]
    assert "test_bench_vae.py::test_decode_step: faster" in done.stdout


def test_a_missing_baseline_is_a_usage_error(tmp_path: Path) -> None:
    done = run(SUITES, "--baseline", tmp_path / "none.json")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "none.json: no such baseline file; check the path" in done.stderr


def test_what_a_session_wrote_can_be_read(saved: Path, baseline: ModuleType) -> None:
    found = baseline.Baseline.load(saved)
    assert set(found.runs) == {
        "test_bench_vae.py::test_encode", "test_bench_vae.py::test_decode_step",
    }  # fmt: skip
    found.require(SETTINGS, found.machine, any_machine=False)
    entries = found.compare(list(found.runs.values()), 0.0)
    assert [entry.verdict for entry in entries] == ["no change"] * 2


def entry(seconds: list[float], probe: list[float], name: str = "test_chunk") -> dict[str, Any]:
    return {
        "fullname": f"benchmarks/e2e/test_bench_chunk.py::{name}",
        "name": name,
        "stats": {"data": seconds},
        "extra_info": {"settings": SETTINGS, "machine": MACHINE, "probe": probe},
    }


def times(seconds: float, seed: int) -> list[float]:
    return list(seconds * np.exp(np.random.default_rng(seed).normal(0, 0.02, 12)))


def load(baseline: ModuleType, folder: Path, *entries: dict[str, Any]) -> Any:
    path = folder / "saved.json"
    path.write_text(json.dumps({"benchmarks": list(entries)}))
    return baseline.Baseline.load(path)


@pytest.mark.parametrize(
    ("seconds", "probe", "verdict"),
    [
        (0.3, 0.01, "no change"),
        (0.36, 0.01, "slower"),
        (0.25, 0.01, "faster"),
        (0.36, 0.012, "no change"),  # the machine is slower, and so is the probe
        (0.3, 0.008, "no change"),  # the probe alone is faster
        (0.45, 0.012, "slower"),  # more than the machine
    ],
)
def test_a_slower_machine_is_no_regression(
    baseline: ModuleType, tmp_path: Path, seconds: float, probe: float, verdict: str
) -> None:
    before = load(baseline, tmp_path, entry(times(0.3, 1), times(0.01, 2)))
    name = "test_bench_chunk.py::test_chunk"
    now = baseline.Run(name=name, seconds=tuple(times(seconds, 3)), probe=tuple(times(probe, 4)))
    (found,) = before.compare([now], 0.05)
    assert found.verdict == verdict
    assert baseline.sentence(found).startswith("REGRESSION ") == (verdict == "slower")
    (found,) = before.compare([baseline.Run(name="new", seconds=(1.0,), probe=(1.0,))], 0.05)
    assert found.verdict == "new" and "not in the baseline" in baseline.sentence(found)


@pytest.mark.parametrize(
    "content",
    [
        b"[1, 2",
        b"[]",
        b'{"benchmarks": []}',
        json.dumps({"benchmarks": [{"fullname": "a::b", "extra_info": {}}]}).encode(),
        json.dumps({"benchmarks": [entry([0.1] * 7, [0.1] * 7)]}).encode(),
        json.dumps({"benchmarks": [entry([0.0] * 9, [0.1] * 9)]}).encode(),
        json.dumps({"benchmarks": [entry([0.1] * 9, [0.1] * 8)]}).encode(),
    ],
)
def test_a_foreign_baseline_is_refused(
    baseline: ModuleType, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "foreign.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"foreign\.json: ") as error:
        baseline.Baseline.load(path)
    assert "\n" not in str(error.value)


def test_other_settings_and_machines_are_refused(baseline: ModuleType, tmp_path: Path) -> None:
    found = load(baseline, tmp_path, entry(times(0.3, 1), times(0.01, 2)))
    found.require(SETTINGS, MACHINE | {"date": "later"}, any_machine=False)
    with pytest.raises(UserError, match=r"is of --preset tiny .* this session of --preset mid"):
        found.require(SETTINGS | {"preset": "mid"}, MACHINE, any_machine=True)
    other = MACHINE | {"cpu": "other"}
    with pytest.raises(UserError, match="another machine: cpu this there and other here"):
        found.require(SETTINGS, other, any_machine=False)
    assert found.remarks == []
    found.require(SETTINGS, other, any_machine=True)
    assert found.remarks == ["ANOTHER MACHINE: cpu this there and other here"]


@pytest.fixture
def power(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script that measures how often a comparison is right."""
    monkeypatch.syspath_prepend(str(SUITES.parent))
    import compare_power

    return compare_power


def trial(kind: str, *verdicts: str) -> dict[str, Any]:
    change = {"ratio": 1.1, "low": 1.05, "high": 1.15}
    rows = [{"row": f"row {i}", "verdict": v, "change": change} for i, v in enumerate(verdicts)]
    return {"index": 0, "kind": kind, "rows": rows}


def test_trials_are_counted_and_continued(power: ModuleType, tmp_path: Path) -> None:
    trials = [
        trial("equal", "no change", "no change"),
        trial("equal", "no change", "faster"),
        trial("slower", "slower", "only in B"),
    ]
    counts = power.count(trials)
    assert counts["equal"] == {"trials": 2, "any row changed": 1, "no change": 2}
    assert counts["slower"] == {"trials": 1, "any row changed": 1, "slower": 1}
    assert power.describe(trials[1]) == "equal    +10.0 % (+5.0 to +15.0): no change; row 1 faster"
    path, facts = tmp_path / "trials.json", {"settings": {"pairs": 20}, "machine": MACHINE}
    assert power.begun(path, facts) == []
    write_json(path, facts | {"trials": trials})
    later = facts | {"machine": MACHINE | {"date": "later"}}
    assert power.begun(path, later) == trials
    with pytest.raises(SystemExit, match="holds trials of other settings"):
        power.begun(path, facts | {"settings": {"pairs": 21}})
    assert [file.name for file in tmp_path.iterdir()] == ["trials.json"]
