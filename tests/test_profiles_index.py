"""The index of recorded results: fresh, complete, and made of what the files say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT = REPOSITORY / "benchmarks/profiles_index.py"
README = """# Results

<!-- index: made by benchmarks/profiles_index.py -->
<!-- end of index -->

More.
"""
REPORT = """<!-- question: how fast is it? -->

# Speed of a thing

**Answer.** Fast. Numbers: [one](data/speed_epyc2c_202611.json), [two](data/other.json),
[a site](https://example.org/x.json).
"""


def index(folder: Path, *options: str) -> tuple[int, str]:
    """Run the script; its exit code and what it says."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--folder", str(folder), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stderr


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "speed_epyc2c_202611.md").write_text(REPORT)
    cpu = {"cpu": "A|B", "gpu": None, "commit": "aaa1111", "date": "2026-11-20"}
    gpu = {**cpu, "gpu": {"name": "NVIDIA H200"}, "date": "2026-11-26", "commit": "bbb2222"}
    one = {"machine": cpu, "again": {"deeper": {"machine": {**cpu, "cores": 2}}}}
    (tmp_path / "data/speed_epyc2c_202611.json").write_text(json.dumps(one))
    (tmp_path / "data/other.json").write_text(json.dumps({"machine": gpu, "runs": [1]}))
    return tmp_path


def test_the_index_of_this_repository_is_fresh_and_complete():
    code, said = index(REPOSITORY / "profiles", "--check")
    assert code == 0, f"{said}python benchmarks/profiles_index.py"


def test_every_data_file_is_linked_from_the_index():
    table = (REPOSITORY / "profiles/README.md").read_text().partition("<!-- end of index -->")[0]
    files = (REPOSITORY / "profiles/data").rglob("*.json")
    assert not [file.name for file in files if f"](data/{file.name})" not in table]


def test_a_row_says_what_report_and_data_say(folder):
    assert index(folder) == (0, "")
    text = (folder / "README.md").read_text()
    (row,) = [line for line in text.splitlines() if "Speed" in line]
    assert [cell.strip() for cell in row.split(" | ")] == [
        "| [Speed of a thing](speed_epyc2c_202611.md)",
        "how fast is it?",
        "A\\|B, 2 cores; NVIDIA H200",
        "2026-11-20 to 2026-11-26",
        "aaa1111; bbb2222",
        "[speed](data/speed_epyc2c_202611.json), [other](data/other.json) |",
    ]
    assert text.startswith("# Results\n") and text.endswith("\nMore.\n")
    assert index(folder, "--check") == (0, "")
    assert index(folder) == (0, "") and (folder / "README.md").read_text() == text


def test_a_stale_index_fails_the_check_and_is_left_alone(folder):
    code, said = index(folder, "--check")
    assert code == 1 and "stale" in said
    assert (folder / "README.md").read_text() == README


def test_what_was_compiled_names_its_target(folder):
    compiled = {"target": "sm_90a", "commit": "ccc3333", "date": "2026-11-21", "kernels": []}
    (folder / "data/other.json").write_text(json.dumps(compiled))
    assert index(folder)[0] == 0
    text = (folder / "README.md").read_text()
    assert "A\\|B, 2 cores; compiled for sm_90a" in text and "ccc3333" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data/lost.json", "{}", "lost.json: no report links to it"),
        ("data/deep/lost.json", "{}", "lost.json: no report links to it"),
        ("more.md", "# A title\n", "more.md: begin it with"),
        ("more.md", "<!-- question: why? -->\nno title\n", "more.md: begin it with"),
        ("more.md", f"{REPORT}[gone](data/gone.json)\n", "more.md: links to gone.json"),
        ("README.md", "# Results\n", "README.md: needs the lines"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(folder, name, content, message):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content)
    for options in ((), ("--check",)):
        code, said = index(folder, *options)
        assert code == 1 and said.startswith(f"error: {message}") and said.count("\n") == 1
