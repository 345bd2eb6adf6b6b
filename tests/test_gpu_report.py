"""``make gpu-report``: parts in a budget, what is kept, and what is left of those that fail.

What the parts measure is tested in ``test_gpu_parts.py``.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gpu_report import __main__ as gpu_report
from gpu_report import pages as gpu_pages
from gpu_report import parts as gpu_parts
from gpu_report.run import Family, processes, run_command

from livetalk_kernels.bench.telemetry import Telemetry, gpu_readers
from livetalk_kernels.testing.fake_nvml import StandIn

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"

DRIVER = """
import json, sys
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
from gpu_report import parts as gpu_parts, __main__ as gpu_report

def parts(settings, facts):
    found = []
    for entry in json.loads(Path({fakes!r}).read_text()):
        name = entry["name"]
        result = settings.folder / f"{{name}}.json"
        code = f"result = {{str(result)!r}}\\n" + entry["code"]
        command = [sys.executable, "-c", code]
        found.append(gpu_parts.Part(
            name=name, title=f"the part {{name}}", weight=entry.get("weight", 1.0),
            command=lambda seconds, command=command: list(command), result=result,
            reason=entry.get("reason"), sources=tuple(entry.get("sources", ()))))
    return found

gpu_report.make_parts = parts
gpu_report.FIRST_SECONDS = {first}
sys.exit(gpu_report.main())
"""
WRITE = """
import json
from pathlib import Path
Path(result).write_text(json.dumps({}))
"""
FACTS = WRITE.format(
    {
        "versions": {"torch": "2.x"},
        "devices": [{"name": "H100", "memory_bytes": 2**36, "multiprocessors": 132, "peers": []}],
        "machine": {"cpu": "a CPU", "commit": "abc123", "kernels": "avx2"},
        "packages": {"torch": "2.x", "av": None},
        "cores": 2, "system": "Linux", "python": "3", "compiler": None, "nvcc": None,
        "nvidia_smi": [], "topology": [], "problems": [],
    }
)  # fmt: skip
FIRST_SECONDS = 90.0
GOOD = WRITE.format({"complete": True})
COUNT = "import os; p = os.path.dirname(result) + '/{0}.count'; open(p, 'a').write('x')\n"
# A rank in a session of its own, deaf to SIGINT.
GRANDCHILD = """
import signal, subprocess, sys, time
code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(300)"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
print("grandchild", child.pid, flush=True)
time.sleep(300)
"""

Fake = dict[str, Any]


def start(folder: Path, fakes: list[Fake], *arguments: str) -> "subprocess.Popen[str]":
    """Run the report with these parts, the facts in front."""
    listed = folder / "fakes.json"
    listed.write_text(json.dumps([{"name": "facts", "weight": 0.01, "code": FACTS}, *fakes]))
    driver = DRIVER.format(benchmarks=str(BENCHMARKS), fakes=str(listed), first=FIRST_SECONDS)
    return subprocess.Popen(
        [sys.executable, "-c", driver, "--output", str(folder / "out"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(folder: Path, fakes: list[Fake], *arguments: str) -> tuple[int, str]:
    process = start(folder, fakes, *arguments)
    printed, _ = process.communicate(timeout=60)
    return process.returncode, printed


def report(folder: Path) -> dict[str, dict[str, Any]]:
    """Part -> its entry."""
    value = json.loads((folder / "out/report.json").read_text())
    assert value["schema"] == "livetalk/gpu-report/1"
    return {part["name"]: part for part in value["parts"]}


def counted(folder: Path, name: str) -> int:
    file = folder / f"out/{name}.count"
    return len(file.read_text()) if file.exists() else 0


def is_alive(pid: int) -> bool:
    process = processes().get(pid)
    return process is not None and not process.dead


def test_parts_end_each_in_its_way_and_the_report_says_so(tmp_path: Path) -> None:
    fakes = [
        {"name": "good", "code": GOOD},
        {"name": "bad", "code": "print('the last | word'); raise SystemExit(3)"},
        {"name": "import", "code": "import a_package_that_is_not_there"},
        {"name": "partial", "code": WRITE.format({"complete": False})},
        {"name": "cannot", "code": GOOD, "reason": "needs pytest, not installed here"},
    ]
    code, printed = run(tmp_path, fakes)
    assert code == 1, printed
    parts = report(tmp_path)
    assert {name: part["status"] for name, part in parts.items()} == {
        "facts": "done", "good": "done", "bad": "failed", "import": "failed",
        "partial": "timeout", "cannot": "skipped",
    }  # fmt: skip
    assert parts["bad"]["reason"] == "exit code 3: the last | word"
    assert "No module named 'a_package_that_is_not_there'" in parts["import"]["reason"]
    assert parts["good"]["result"] == {"complete": True} and parts["good"]["seconds"] > 0
    assert "SystemExit" in parts["bad"]["command"]
    page = (tmp_path / "out/report.md").read_text()
    for text in (
        "H100, torch 2.x, commit abc123", "bad: the part bad | failed", "logs/bad.log",
        "exit code 3: the last \\| word", "needs pytest, not installed here", "Not installed: av",
    ):  # fmt: skip
        assert text in page, text
    assert (tmp_path / "out/logs/bad.log").read_text() == "the last | word\n"


def test_a_part_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    slow = f"{GOOD}\n{GRANDCHILD}"
    fakes = [
        {"name": "slow", "code": slow, "weight": 1},
        {"name": "after", "code": GOOD, "weight": 5},
    ]
    begin = time.monotonic()
    code, printed = run(tmp_path, fakes, "--budget", "9")
    assert code == 1 and time.monotonic() - begin < 9, printed
    parts = report(tmp_path)
    assert parts["slow"]["status"] == "timeout" and parts["after"]["status"] == "done"
    assert 1 < parts["slow"]["limit"] < 1.6  # a sixth of what is left
    assert parts["slow"]["limit"] <= parts["slow"]["seconds"] < parts["slow"]["limit"] + 2
    assert parts["slow"]["result"] == {"complete": True}  # what it had written counts
    words = (tmp_path / "out/logs/slow.log").read_text().split()
    assert words[0] == "grandchild" and not is_alive(int(words[1]))


def test_time_that_parts_leave_goes_to_those_after_them(tmp_path: Path) -> None:
    fakes = [
        {"name": name, "code": GOOD, "weight": w} for name, w in (("a", 1), ("b", 1), ("c", 2))
    ]
    code, printed = run(tmp_path, fakes, "--budget", "40")
    assert code == 0, printed
    limits = [report(tmp_path)[name]["limit"] for name in "abc"]
    assert limits[0] == pytest.approx(10, abs=1)
    assert limits[1] == pytest.approx(40 / 3, abs=1.5) and limits[2] == pytest.approx(40, abs=3)


def test_without_time_parts_wait_for_another_run(tmp_path: Path) -> None:
    sleep = "import time; time.sleep(2)"
    fakes = [{"name": "first", "code": sleep}, {"name": "second", "code": GOOD, "weight": 0.01}]
    run(tmp_path, fakes, "--budget", "6.5")
    assert "run it again" in report(tmp_path)["second"]["reason"]
    run(tmp_path, fakes, "--budget", "6.5")
    assert report(tmp_path)["second"]["status"] == "done"


def test_what_is_done_is_kept_until_something_changes(tmp_path: Path) -> None:
    fakes = [
        {"name": "good", "code": COUNT.format("good") + GOOD},
        {"name": "bad", "code": COUNT.format("bad") + "raise SystemExit(1)"},
    ]
    run(tmp_path, fakes)
    run(tmp_path, fakes)
    assert (counted(tmp_path, "good"), counted(tmp_path, "bad")) == (1, 2)
    parts = report(tmp_path)
    assert parts["good"]["status"] == "done" and parts["good"]["kept"]
    assert "done (before)" in (tmp_path / "out/report.md").read_text()
    run(tmp_path, fakes, "--fresh", "--skip", "bad")
    assert (counted(tmp_path, "good"), counted(tmp_path, "bad")) == (2, 2)
    changed = [{**fakes[0], "code": fakes[0]["code"] + "\n"}]  # another command
    run(tmp_path, changed)
    assert counted(tmp_path, "good") == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2.x", "2.y"),  # torch
        ("'nvcc': None", "'nvcc': 'Build cuda_12.8'"),
        ("'compiler': None", "'compiler': 'g++ 14'"),
    ],
)
def test_another_machine_runs_all_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    fakes = [{"name": "good", "code": COUNT.format("good") + GOOD}]
    run(tmp_path, fakes)
    assert FACTS.count(old) > 0
    monkeypatch.setattr(sys.modules[__name__], "FACTS", FACTS.replace(old, new))
    run(tmp_path, fakes)
    assert counted(tmp_path, "good") == 2


def test_what_a_part_is_made_from_runs_it_again(tmp_path: Path) -> None:
    source = tmp_path / "suite"
    source.mkdir()
    (source / "test_a.py").write_text("1")
    fakes = [
        {"name": name, "code": COUNT.format(name) + GOOD, "sources": sources}
        for name, sources in (("good", [str(source), str(tmp_path / "none.toml")]), ("other", []))
    ]
    run(tmp_path, fakes)
    for name, content in (("test_a.py", "2"), ("data.json", "{}"), ("note.txt", "in no digest")):
        (source / name).write_text(content)
        run(tmp_path, fakes)
    assert (counted(tmp_path, "good"), counted(tmp_path, "other")) == (3, 1)


@pytest.mark.parametrize(
    ("facts", "status"),
    [("import time; time.sleep(60)", "timeout"), ("raise SystemExit(1)", "failed"), ("", "done")],
)
def test_without_the_facts_nothing_else_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: str, status: str
) -> None:
    fakes = [{"name": "good", "code": COUNT.format("good") + GOOD}]
    module = sys.modules[__name__]
    assert run(tmp_path, fakes)[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(module, "FACTS", facts)
        patch.setattr(module, "FIRST_SECONDS", 6.0)
        fresh = {"name": "new", "code": COUNT.format("new") + GOOD}
        code, printed = run(tmp_path, [*fakes, fresh])
    assert code == 1 and "nothing else was run" in printed
    parts = report(tmp_path)
    assert parts["facts"]["status"] == status
    assert parts["good"]["kept"] and parts["good"]["result"] == {"complete": True}
    assert parts["new"]["status"] == "skipped" and "not known" in parts["new"]["reason"]
    page = (tmp_path / "out/report.md").read_text()
    assert "**The part facts did not end well" in page and "done (before)" in page
    assert (counted(tmp_path, "good"), counted(tmp_path, "new")) == (1, 0)
    assert run(tmp_path, fakes)[0] == 0  # and all is as before
    assert counted(tmp_path, "good") == 1 and report(tmp_path)["good"]["kept"]


def test_the_facts_have_time_in_a_small_budget(tmp_path: Path) -> None:
    assert run(tmp_path, [{"name": "good", "code": GOOD}], "--budget", "20")[0] == 0
    parts = report(tmp_path)
    assert parts["facts"]["limit"] == FIRST_SECONDS == gpu_report.FIRST_SECONDS
    assert 10 < parts["good"]["limit"] < 20


def test_only_names_parts_and_keeps_the_others(tmp_path: Path) -> None:
    fakes = [{"name": name, "code": COUNT.format(name) + GOOD} for name in ("a", "b")]
    assert run(tmp_path, fakes, "--only", "b")[0] == 0
    assert (counted(tmp_path, "a"), counted(tmp_path, "b")) == (0, 1)
    assert report(tmp_path)["a"]["reason"] == "--only names others"
    run(tmp_path, fakes, "--only", "a")
    assert (counted(tmp_path, "a"), counted(tmp_path, "b")) == (1, 1)
    assert report(tmp_path)["b"]["status"] == "done"
    code, printed = run(tmp_path, fakes, "--only", "c")
    assert code == 2 and "there is no part c; choose facts, a, b" in printed
    code, printed = run(tmp_path, fakes, "--list")
    assert code == 0 and [line.split()[0] for line in printed.splitlines()] == ["facts", "a", "b"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_ends_the_part_and_writes_the_report(tmp_path: Path, number: signal.Signals) -> None:
    fakes = [
        {"name": "good", "code": GOOD},
        {"name": "slow", "code": GRANDCHILD},
        {"name": "after", "code": GOOD},
    ]
    process = start(tmp_path, fakes)
    log = tmp_path / "out/logs/slow.log"
    end = time.monotonic() + 30
    while not log.exists() or "\n" not in log.read_text():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 130, printed
    parts = report(tmp_path)
    assert [parts[n]["status"] for n in ("good", "slow", "after")] == [
        "done", "interrupted", "skipped",
    ]  # fmt: skip
    assert "interrupted" in (tmp_path / "out/report.md").read_text()
    assert not is_alive(int(log.read_text().split()[1]))


def test_what_nobody_saw_in_time_is_ended_too(tmp_path: Path) -> None:
    """A part that is gone at once, while what it started in a session of its own runs on."""
    code = GRANDCHILD.replace("time.sleep(300)\n", "")
    log = tmp_path / "log"
    outcome = run_command(
        [sys.executable, "-c", code], log=log, limit=30, cwd=tmp_path, environment=os.environ
    )
    assert outcome.status == "done" and outcome.seconds < 20
    assert not is_alive(int(log.read_text().split()[1]))


def test_a_family_does_not_take_in_strangers() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    ours, other = (subprocess.Popen(sleep, start_new_session=True) for _ in range(2))
    try:
        family = Family(ours.pid)
        assert family.look() == [ours.pid]
        family.kill()
        assert ours.wait(10) == -signal.SIGKILL and other.poll() is None
        assert os.getpid() not in family.look()
    finally:
        other.kill()
        other.wait()


def test_parts_say_what_they_need(tmp_path: Path) -> None:
    settings = gpu_parts.Settings(device="cuda", preset="14b", layers=None, folder=tmp_path)
    packages = dict.fromkeys(("torch", "numpy", "safetensors", "psutil", "rich"), "1")
    facts = {"packages": {**packages, "pytest": None}, "devices": [{}]}
    reasons = {part.name: part.reason for part in gpu_parts.make_parts(settings, facts)}
    assert reasons["tests"] == "needs pytest, not installed here"
    assert reasons["step"] is None and "two or more" in (reasons["scaling"] or "")
    nothing = {
        part.name: part.reason for part in gpu_parts.make_parts(settings, {**facts, "devices": []})
    }
    assert "torch sees no GPU" in (nothing["step"] or "") and "nvcc" in (nothing["build"] or "")
    several = gpu_parts.make_parts(settings, {**facts, "devices": [{}] * 5})
    command = next(part for part in several if part.name == "scaling").command(10)
    assert command[command.index("--ranks") + 1 :][:3] == ["1", "2", "4"]
    assert command[command.index("--chunks") + 1] == "5"


def test_what_the_parts_get_of_the_time(tmp_path: Path) -> None:
    """On one GPU: smoke has its own seconds, and the profile enough for 14b, without av."""
    settings = gpu_parts.Settings(device="cuda", preset="14b", layers=None, folder=tmp_path)
    packages = {"matplotlib": "3", "av": None}
    parts = gpu_parts.make_parts(settings, {"packages": packages, "devices": [{}]})
    named = {part.name: part for part in parts}
    profile = named["profile"]
    command = profile.command(60)
    assert profile.reason is None and "--no-video" in command
    assert command[command.index("--preset") + 1] == "14b"
    order = "facts smoke build smoke-cuda step chunk-fp8 ops vae graphs chunk build-cpu tests"
    assert list(named)[:12] == order.split() and list(named)[-1] == "profile"
    assert "--until" in named["step"].command(7.0) and "7.00" in named["step"].command(7.0)
    assert named["build"].command(0)[1:] == [str(gpu_report.ROOT / "setup.py"), "build_cuda"]
    assert named["build"].cwd == tmp_path and named["build-cpu"].command(0)[2] == "build_cpu"
    assert "no nvcc" in (named["build"].reason or "") and named["build"].always
    able = [part for part in parts if part.name not in ("scaling", "comm")]
    share = profile.weight / sum(part.weight for part in able)
    left = gpu_report.BUDGET - sum(part.fixed for part in able)
    assert left * share > 40  # seconds, even if the others use up theirs
    assert gpu_parts.soft_end(100.0, 20.0) == 117.0 and gpu_parts.soft_end(100.0, 200.0) == 290.0
    stage = {"stage": "decode", "part": "", "p50": 0.1, "p95": 0.2, "share": 0.9}
    summary = {"fps": 20.0, "chunk": {"count": 3}, "stages": [stage]}
    text = "\n".join(gpu_pages.profile_section({"settings": {"model": "14b"}, "summary": summary}))
    assert "Preset 14b: 20.0 frames/s of 3 chunks" in text


SMOKE = WRITE.format({"complete": True, "excluded": ["add_norm=triton"]})
VARIABLE = """
import json, os
from pathlib import Path
value = {"complete": True, "seen": os.environ.get("LIVETALK_EXCLUDE")}
Path(result).write_text(json.dumps(value))
"""


def test_what_breaks_is_left_out_of_all_that_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIVETALK_EXCLUDE", "quantize=cpu")
    fakes = [
        {"name": "before", "code": VARIABLE},
        {"name": "smoke", "code": SMOKE},
        {"name": "after", "code": COUNT.format("after") + VARIABLE},
    ]
    for _ in range(2):  # also where the first of two runs has found it
        assert run(tmp_path, fakes)[0] == 0
        parts = report(tmp_path)
        assert parts["before"]["result"]["seen"] == "quantize=cpu"
        assert parts["after"]["result"]["seen"] == "quantize=cpu,add_norm=triton"
    assert counted(tmp_path, "after") == 1
    page = (tmp_path / "out/report.md").read_text()
    assert "Excluded from everything below: add_norm=triton" in page
    fine = [fakes[0], {"name": "smoke", "code": GOOD}, fakes[2]]
    run(tmp_path, fine)  # what was measured without a backend is measured again with it
    assert counted(tmp_path, "after") == 2


def test_the_archive_is_small_and_a_run_continues_from_it(tmp_path: Path) -> None:
    noise = (
        "import os; open(os.path.dirname(result) + '/big.bin', 'wb').write(os.urandom(17<<20))\n"
    )
    fakes = [{"name": "good", "code": COUNT.format("good") + noise + GOOD}]
    code, printed = run(tmp_path, fakes)
    archive = tmp_path / "out.tar.gz"
    assert code == 0 and "without big.bin" in printed and archive.stat().st_size < 16 << 20
    shutil.rmtree(tmp_path / "out")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    assert (tmp_path / "out/left-out.txt").read_text() == "big.bin\n"
    run(tmp_path, fakes, "--pack", str(tmp_path / "out/again.tar.gz"))
    assert report(tmp_path)["good"]["kept"] and (tmp_path / "out/again.tar.gz").is_file()


def test_a_part_depends_on_the_files_that_it_runs(tmp_path: Path) -> None:
    settings = gpu_parts.Settings(device="cuda", preset="14b", layers=None, folder=tmp_path)
    sources = {part.name: part.sources for part in gpu_parts.make_parts(settings, {})}
    assert "tests" in sources["tests"] and sources["build"] == ("setup.py",)
    for names in sources.values():
        assert all((gpu_report.ROOT / name).exists() for name in names)


def test_telemetry_is_summed_up_by_part() -> None:
    clock = itertools.count(1010, 10)
    nvml: Any = StandIn(
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetUUID=lambda handle: ("GPU-other", "GPU-ours")[handle],
        nvmlDeviceGetHandleByUUID=("GPU-other", "GPU-ours").index,
        nvmlDeviceGetClockInfo=lambda handle, kind: next(clock),
        nvmlDeviceGetPowerUsage=None,
        nvmlDeviceGetTemperature=lambda handle, kind: 50,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(used=40e9 * handle),
    )
    begin = time.perf_counter_ns()
    with Telemetry([], period=0.01, readers=gpu_readers(nvml)) as telemetry:
        while telemetry.count < 10:
            time.sleep(0.01)
    assert nvml.users == 0 and gpu_readers(None) == []
    samples = telemetry.as_json(begin)["samples"]
    assert len(gpu_pages.clocks(samples, [])) == 2
    # Torch sees one of them, as its first: CUDA_VISIBLE_DEVICES=1.
    (gpu,) = gpu_pages.clocks(samples, ["ours"])
    assert gpu["gpu"] == 0
    assert gpu["SM clock"]["most"] > gpu["SM clock"]["median"] > 1000
    assert gpu["power"] is None and gpu["memory"] == {"median": 40.0, "most": 40.0}
    later = telemetry.as_json(time.perf_counter_ns())["samples"]
    assert gpu_pages.clocks(later, ["ours"])[0]["utilisation"] is None
    assert gpu_pages.clocks({"t": []}, ["ours"]) == []
    lines = gpu_pages.telemetry([{"name": "step", "telemetry": [gpu]}])
    assert any("| step | 0 |" in line and "50 / 50" in line for line in lines)


def test_junit_counts(tmp_path: Path) -> None:
    file = tmp_path / "tests.xml"
    file.write_text(
        '<testsuites><testsuite tests="3" failures="1" errors="0" skipped="1"><testcase '
        'classname="a" name="b"><failure message="no"/></testcase></testsuite></testsuites>'
    )
    found = gpu_pages.read_junit(file)
    assert found is not None and found["tests"] == 3 and found["wrong"] == ["a b: no"]
    file.write_text("<testsuites>")
    assert gpu_pages.read_junit(file) is None and gpu_pages.read_junit(tmp_path / "none") is None
