"""Two profiles against each other: rows, what differs, reports, and processes that take turns."""

import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from livetalk_kernels.errors import UserError
from livetalk_model.profile.compare import (
    MOST,
    compare_chunks,
    compare_folders,
    compare_workers,
    differences,
    read_report,
)
from livetalk_model.profile.paced import Pacer, Worker, WorkerError

# A process that follows the protocol without a model. Its words: what goes wrong, and when.
FAKE = """\
import json, os, signal, socket, sys, time

fault, path = sys.argv[1], sys.argv[2]
print("starting", file=sys.stderr, flush=True)
if fault == "bad option":
    print("error: --size 3x3: too small", file=sys.stderr)
    raise SystemExit(2)
if fault == "crash":
    raise RuntimeError("first\\nsecond")
connection = socket.socket(socket.AF_UNIX)
connection.connect(path)
lines = connection.makefile("rb")
assert lines.readline() == b"load\\n"
if fault == "memory":
    print("error: out of memory; use a smaller preset", file=sys.stderr)
    raise SystemExit(1)
if fault == "stuck":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    print("stuck", file=sys.stderr, flush=True)
    time.sleep(600)
def send(text):
    connection.sendall(text.encode() + b"\\n")
send("[1, 2" if fault == "no json" else "{}" if fault == "not ready" else
     json.dumps({"ready": {"model": "fake", "backends": {"dit": {"add_norm": fault}}}}))
count = 0
while lines.readline() == b"go\\n":
    count += 1
    with open(os.path.join(os.path.dirname(path), "..", "turns"), "a") as turns:
        turns.write(os.path.basename(os.path.dirname(path)))
    if count == 3 and fault == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    seconds = 0.002 + 0.001 * (fault == "slow")
    time.sleep(seconds)
    stages = {"denoise": {"linears": 0.6 * seconds, "gaps": 0.2 * seconds}, "short": {"all": 1e-6}}
    if fault == "slow":
        stages["own"] = {"all": 0.1 * seconds}
    chunk = {"seconds": seconds * (1 + 0.01 * (count % 3)), "stages": stages,
             "unattributed": 0.2 * seconds}
    send("{}" if fault == "nonsense" else json.dumps(chunk))
open(path + ".ended", "w").close()
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """The program."""
    path = tmp_path / "fake.py"
    path.write_text(FAKE)
    return path


def worker(fake: Path, name: str, fault: str) -> Worker:
    folder = fake.parent / name
    folder.mkdir()
    return Worker(name, [sys.executable, str(fake), fault], folder)


def quiet(head: str, text: str) -> None:
    """Nobody listens."""


def children() -> list[str]:
    return [" ".join(p.cmdline()) for p in psutil.Process().children() if "fake.py" in p.cmdline()]


def chunk(seconds: float, **stages: float) -> dict[str, Any]:
    """Stages as shares of the chunk."""
    parts = {name: {"all": share * seconds} for name, share in stages.items()}
    rest = (1 - sum(stages.values())) * seconds
    return {"seconds": seconds, "stages": parts, "unattributed": rest}


def noisy(count: int, seed: int, seconds: float = 0.3) -> list[float]:
    return list(seconds * np.exp(np.random.default_rng(seed).normal(0, 0.02, count)))


def test_rows_are_the_chunk_and_its_stages() -> None:
    a = [chunk(s, denoise=0.6, decode=0.3, tiny=0.005) for s in noisy(20, 1)]
    b = [chunk(s, denoise=0.6, encode=0.3) for s in noisy(20, 2, 0.36)]
    b[3]["stages"].pop("encode")
    rows = {row.name: row for row in compare_chunks(a, b, interleaved=True)}
    assert list(rows) == ["chunk", "denoise", "decode", "encode", "unattributed"]
    verdicts = {name: row.verdict for name, row in rows.items()}
    assert verdicts == {
        "chunk": "slower",
        "denoise": "slower",
        "decode": "only in A",
        "encode": "only in B",
        "unattributed": "slower",
    }
    whole, denoise = rows["chunk"].change, rows["denoise"].change
    assert whole is not None and denoise is not None
    assert whole.ratio == pytest.approx(1.2, rel=0.03)
    assert denoise.level > whole.level  # stages share one probability of a false alarm
    assert rows["decode"].a == pytest.approx(0.09, rel=0.1) and rows["decode"].b is None
    assert rows["decode"].share == pytest.approx(0.3)


def test_a_stage_that_comes_and_goes_has_no_interval() -> None:
    a = [chunk(s, denoise=0.6) for s in noisy(12, 1)]
    b = [chunk(s, denoise=0.6 * (i % 4 > 0)) for i, s in enumerate(noisy(12, 2))]
    rows = {row.name: row for row in compare_chunks(a, b, interleaved=True)}
    assert rows["denoise"].verdict == "not in all" and rows["denoise"].change is None
    assert rows["denoise"].as_json()["change"] is None


def test_parts_of_a_stage_are_added_up() -> None:
    entry = chunk(0.3, decode=0.5) | {"stages": {"denoise": {"linears": 0.1, "gaps": 0.05}}}
    rows = compare_chunks([entry] * 10, [entry] * 10, interleaved=True)
    assert rows[1].name == "denoise" and rows[1].a == pytest.approx(0.15)
    assert rows[1].verdict == "no change"


def test_differences_of_nested_facts() -> None:
    a = {"dtype": "float32", "backends": {"dit": {"add_norm": "cpu", "x": "y"}}, "size": [1, 2]}
    b = {"dtype": "float32", "backends": {"dit": {"add_norm": "triton", "x": "y"}}, "seed": 0}
    assert differences(a, b) == [
        {"what": "backends.dit.add_norm", "a": "cpu", "b": "triton"},
        {"what": "size", "a": [1, 2], "b": None},
        {"what": "seed", "a": None, "b": 0},
    ]
    assert differences(a, a) == []


def write_report(folder: Path, seconds: list[float], **changes: Any) -> Path:
    report = {
        "schema": "livetalk/profile/1",
        "settings": {"model": "tiny", "dtype": "float32"},
        "machine": {"cpu": "this", "date": "2026-01-01", "commit": "abc"},
        "chunks": [chunk(s, denoise=0.9) for s in seconds],
    } | changes
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_two_folders(tmp_path: Path) -> None:
    a = write_report(tmp_path / "a", noisy(10, 1))
    machine = {"cpu": "other", "date": "2026-02-02", "commit": "abc"}
    b = write_report(tmp_path / "b", noisy(12, 2, 0.6), machine=machine)
    found = compare_folders(a, b)
    assert found.change.verdict == "slower" and found.change.count == 10
    assert found.change.ratio == pytest.approx(2, rel=0.05)
    assert found.changed == [{"what": "machine.cpu", "a": "this", "b": "other"}]
    entry = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert entry["interleaved"] is False and entry["verdict"] == "another machine"
    assert len(entry["a"]["chunks"]) == 10 and len(entry["b"]["chunks"]) == 12


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema": "livetalk/profile/2"}, "its schema is livetalk/profile/2"),
        ({"chunks": [chunk(0.1, denoise=0.5)] * 7}, "holds 7 chunks, too few"),
        ({"chunks": [chunk(0.0)] * 9}, "a chunk took no time"),
        ({"chunks": [{"seconds": 1}] * 9}, "is not a report"),
        ({"chunks": "none"}, "is not a report"),
        ({"chunks": [chunk(float("nan"))] * 9}, "seconds: NaN is no"),
        ({"settings": None}, "is not a report"),
    ],
)
def test_a_bad_report_is_named(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    folder = write_report(tmp_path / "a", noisy(10, 1), **changes)
    with pytest.raises(UserError, match=r"report\.json: ") as error:
        read_report(folder)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_missing_or_broken_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such report file"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("[1, 2")
    with pytest.raises(UserError, match="is not valid JSON"):
        read_report(tmp_path)


def test_two_processes_take_turns(fake: Path) -> None:
    said: list[tuple[str, str]] = []
    workers = worker(fake, "A", "none"), worker(fake, "B", "slow")
    found = compare_workers(("a", "b"), workers, 12, lambda *words: said.append(words))
    assert [len(side) for side in found.chunks] == [12, 12]
    assert found.change.verdict == "slower"
    rows = {row.name: row.verdict for row in found.rows}
    assert rows == {
        "chunk": "slower", "denoise": "slower", "unattributed": "slower", "own": "only in B",
    }  # fmt: skip
    assert found.changed == [{"what": "settings.backends.dit.add_norm", "a": "none", "b": "slow"}]
    assert said[-1] == ("A and B take turns", "pair 12 of 12")
    assert all((fake.parent / name / "socket.ended").exists() for name in "AB")  # by themselves
    assert not children()
    assert (fake.parent / "turns").read_text() == "BA" + 6 * "ABBA"
    # The chunk before the first pair is not counted: counts continue from 2.
    first = [side[0]["seconds"] / side[1]["seconds"] for side in found.chunks]
    assert first == pytest.approx([1.02 / 1.0] * 2)


@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        ("bad option", UserError, "B: --size 3x3: too small"),
        ("crash", WorkerError, "B: ended with 1:\n  starting"),
        ("memory", WorkerError, "compare the two folders"),
        ("killed", WorkerError, "B: was killed by SIGKILL; if two models do not fit"),
        ("no json", WorkerError, "B: talks nonsense: '[1, 2'"),
        ("not ready", WorkerError, "has not said with which settings"),
        ("nonsense", WorkerError, "B: {} are not a chunk's times"),
    ],
)
def test_what_goes_wrong_is_said_and_both_end(
    fake: Path, fault: str, kind: type[Exception], says: str
) -> None:
    workers = worker(fake, "A", "none"), worker(fake, "B", fault)
    with pytest.raises(kind) as error:
        compare_workers(("a", "b"), workers, 12, quiet)
    assert says in str(error.value)
    assert not children()


class Scripted:
    """A process that is none, whose chunks have given times."""

    def __init__(self, name: str, spread: float, seed: int) -> None:
        self.name, self.open = name, False
        self._spread, self._random = spread, np.random.default_rng(seed)

    def start(self) -> None:
        self.open = True

    def load(self) -> dict[str, Any]:
        return {"model": "tiny"}

    def chunk(self) -> dict[str, Any]:
        return chunk(float(np.exp(self._random.normal(0, self._spread))))

    def close(self, *, interrupt: bool) -> None:
        assert not interrupt
        self.open = False


@pytest.mark.parametrize(("spread", "pairs"), [(0.01, 12), (0.5, 12 * MOST)])
def test_noisy_times_get_more_pairs(spread: float, pairs: int) -> None:
    sides = Scripted("A", spread, 1), Scripted("B", spread, 2)
    found = compare_workers(("a", "b"), sides, 12, quiet)  # type: ignore[arg-type]
    assert [len(chunks) for chunks in found.chunks] == [pairs, pairs]
    assert found.rows[0].change is not None and found.rows[0].change.count == pairs
    assert not any(side.open for side in sides)


def test_ctrl_c_ends_both(fake: Path) -> None:
    workers = worker(fake, "A", "none"), worker(fake, "B", "stuck")

    def interrupt(head: str, text: str) -> None:
        if head.startswith("B"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_workers(("a", "b"), workers, 12, interrupt)
    assert not children()


def test_a_process_that_is_stuck_is_interrupted(fake: Path) -> None:
    stuck = worker(fake, "A", "stuck")
    stuck.start()
    assert stuck._socket is not None
    stuck._socket.sendall(b"load\n")
    while b"stuck" not in (fake.parent / "A/messages").read_bytes():
        pass
    stuck.close(interrupt=True)
    assert b"KeyboardInterrupt" in (fake.parent / "A/messages").read_bytes()
    stuck.close()
    assert not children()


CLIENT = """\
import sys
from livetalk_model.profile.paced import Pacer
with Pacer(sys.argv[1]) as pacer:
    pacer.ready({"model": "paced"})
    number = 0
    while pacer.wait():
        number += 1
        times = {"seconds": number, "stages": {"denoise": {"all": 0.5}}, "unattributed": 0.5}
        pacer.report({**times, "beside": {"x": 1.0}, "index": number})
print("ended", flush=True)
"""


def test_the_profiles_end_of_the_socket(tmp_path: Path) -> None:
    (tmp_path / "fake.py").write_text(CLIENT)
    paced = Worker("A", [sys.executable, str(tmp_path / "fake.py")], tmp_path)
    paced.start()
    assert paced.load() == {"model": "paced"}
    expected = {"stages": {"denoise": {"all": 0.5}}, "unattributed": 0.5}
    assert [paced.chunk() for _ in range(2)] == [{"seconds": n, **expected} for n in (1, 2)]
    paced.close()
    assert (tmp_path / "messages").read_text() == "ended\n"


def test_a_pacer_without_anyone_to_pace_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nobody listens there"), Pacer(tmp_path / "socket"):
        pass


def test_a_pacer_survives_the_loss_of_the_other_end(tmp_path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "socket"))
    listener.listen(1)

    def leave() -> None:
        connection, _ = listener.accept()
        connection.sendall(b"load\n")
        connection.close()

    thread = threading.Thread(target=leave)
    thread.start()
    phases: list[str] = []

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        phases.append(name)
        yield

    with Pacer(tmp_path / "socket", phase=phase) as pacer:
        thread.join()
        pacer.ready({})
        pacer.report({"seconds": 1.0, "stages": {}, "unattributed": 1.0})
        assert not pacer.wait()
    assert phases == ["wait", "wait"]
    listener.close()
