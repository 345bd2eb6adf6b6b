"""The first parts of ``make gpu-report``, with backends that hang, crash and fail."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BACKEND = '''"""A backend that {what}."""

import os
import signal
import time


def supports(case):
    return None


def run(*arguments, **keywords):
    {body}
'''
BROKEN = {
    "add_norm/hanging": "time.sleep(1e6)",
    "merge_lse/failing": "raise RuntimeError('CUDA error: an illegal address')",
    "quantize/crashing": "os.kill(os.getpid(), signal.SIGSEGV)",
    "rms_norm/wrong": "return arguments[0] * 2",
}


def test_backends_that_break_are_named_and_the_other_parts_complete(tmp_path: Path) -> None:
    """A copy of the project with four more files: a backend is one."""
    copy = tmp_path / "copy"
    for name in ("livetalk_kernels", "model", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "setup.py", copy)
    for name, body in BROKEN.items():
        file = copy / f"livetalk_kernels/ops/{name}.py"
        file.write_text(BACKEND.format(what=file.stem, body=body))
    folder = tmp_path / "out"
    done = subprocess.run(
        [
            *(sys.executable, str(copy / "benchmarks/gpu_report"), "--device", "cpu"),
            *("--preset", "tiny", "--layers", "1", "--budget", "300", "--output", str(folder)),
            *("--only", "facts", "smoke", "chunk"),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=290,
        env={name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "report.json").read_text())
    broken = sorted(name.replace("/", "=") for name in BROKEN)
    assert report["excluded"] == broken
    parts = {part["name"]: part for part in report["parts"]}
    assert {name: parts[name]["status"] for name in ("smoke", "chunk")} == {
        "smoke": "done", "chunk": "done",
    }  # fmt: skip
    smoke = parts["smoke"]["result"]
    rows = {(row["op"], row["backend"]): row for row in smoke["rows"]}
    states = {name: rows[tuple(name.split("/"))]["state"] for name in BROKEN}
    assert list(states.values()) == ["hangs", "fails", "crashes", "wrong"]
    assert rows["quantize", "crashing"]["note"] == "its process ended with code -11"
    assert "illegal address" in rows["merge_lse", "failing"]["note"]
    others = [row for name, row in rows.items() if "/".join(name) not in BROKEN]
    assert {row["state"] for row in others} == {"ok", "left out"} and len(others) > 50
    assert all(row["error"] < 1 for row in others if row["state"] == "ok")
    page = (folder / "report.md").read_text()
    assert f"Excluded from everything below: {', '.join(broken)}" in page
    assert "| add_norm  | hanging | hangs |" in page
