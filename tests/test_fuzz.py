"""Ten seconds of the fuzzer, and that it finds what it is there for; minutes: ``make fuzz``."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzz.__main__ import EXTRA_MEMORY, Job, run
from fuzz.loaders import Loader
from fuzz.mutations import mutate

from livetalk_kernels.errors import UserError

TESTS = Path(__file__).resolve().parent
GOOD = b'{"a": [1, 2, {"b": "text"}]}'


def fuzz(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fuzz", *options],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_loader_fails_in_ten_seconds():
    done = fuzz("--seconds", "10", "--mutations", "20000")
    assert done.returncode == 0, done.stdout + done.stderr


def refuse(path: Path) -> None:
    if path.read_bytes() != GOOD:
        raise UserError(f"{path}: damaged; export it again")


def crash(path: Path) -> None:
    if path.read_bytes() != GOOD:
        raise KeyError("weights")


def hang(path: Path) -> None:
    while path.read_bytes() != GOOD:
        time.process_time()


def eat(path: Path) -> None:
    if path.read_bytes() != GOOD:
        raise MemoryError(bytes(EXTRA_MEMORY)[:3])


@pytest.mark.parametrize(
    ("read", "sign"),
    [
        (refuse, None),
        (crash, "KeyError"),
        (hang, "CPU time"),
        (eat, "MemoryError"),
    ],
)
def test_finds_what_it_is_there_for(read, sign, tmp_path, monkeypatch):
    monkeypatch.setattr("fuzz.__main__.CASE_SECONDS", 0.1)
    job = Job(seed=0, first=0, mutations=20, seconds=60, folder=tmp_path)
    tried, failures = run("toy", Loader(read=read, seeds={"a.json": GOOD}, is_json=True), job)
    assert tried == (20 if sign is None else len(failures)) or len(failures) == 3
    assert bool(failures) == (sign is not None)
    assert all(sign in line for line in failures)


def test_a_loader_that_refuses_good_files_is_no_test(tmp_path):
    job = Job(seed=0, first=0, mutations=1, seconds=60, folder=tmp_path)
    with pytest.raises(KeyError):
        run("toy", Loader(read=crash, seeds={"a.json": b"{}"}), job)


def test_mutations_are_the_same_again_and_of_all_kinds():
    first = [mutate(GOOD, random.Random(seed), is_json=True) for seed in range(300)]
    again = [mutate(GOOD, random.Random(seed), is_json=True) for seed in range(300)]
    assert first == again
    parsed = sum(is_json(data) for data in first)
    assert 100 < parsed < 290  # values spoiled in files that are JSON still, and broken files
    assert len(set(first)) > 150


def is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except ValueError:
        return False
    return True
