"""The files of ``deploy/`` name what exists, pass their linters, and the batch script runs."""

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from livetalk_model.cli.main import make_parser

REPOSITORY = Path(__file__).resolve().parent.parent
SCRIPT, IMAGE = REPOSITORY / "deploy/livetalk.sbatch", REPOSITORY / "deploy/Containerfile"
PAGES = [SCRIPT, IMAGE, REPOSITORY / "docs/deploy.md", REPOSITORY / "README.md"]
CALL = re.compile(
    r"(?P<batch>livetalk\.sbatch (?=-))|(?:-m livetalk_model|docker run [^\n]*? livetalk) (?=[a-z])"
)
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do shift; done
SLURM_NODEID=1 "$@" & SLURM_NODEID=0 "$@"; code=$?
wait $! && exit $code
"""
SCONTROL = '#!/bin/sh\necho "$3" | tr , "\\n"\n'


def calls(file: Path) -> list[list[str]]:
    """Command lines of livetalk in a file, without the program."""
    lines = re.sub(r"\\\n#?\s*", " ", file.read_text(encoding="utf-8"))
    found = []
    for match in CALL.finditer(lines):
        words = re.split(r"[\n'\"#]", lines[match.end() :], maxsplit=1)[0]
        found.append([*(["generate"] if match["batch"] else []), *shlex.split(words)])
    return found


def test_flags_are_understood_by_the_command_line() -> None:
    found = [(file.name, words) for file in PAGES for words in calls(file)]
    given = [words for _, words in found if len(words) > 1]
    assert {name for name, words in found if len(words) > 1} >= {"livetalk.sbatch", "deploy.md"}
    for words in given:
        args = make_parser(words).parse_args(words)
        assert args.checkpoint == "SoulX-FlashTalk-14B" and args.output.name == "talk.mp4"
    for words in ([words[0]] for _, words in found if len(words) == 1):
        assert make_parser(words)
    with pytest.raises(SystemExit):  # the parser is the real one
        make_parser(given[0]).parse_args([*given[0], "--nonsense"])


def test_the_image_is_made_by_targets_that_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    (words,) = re.findall(r"^RUN make (.*)$", IMAGE.read_text(encoding="utf-8"), re.MULTILINE)
    targets = [word for word in words.split() if "=" not in word]
    settings = [word.partition("=")[0] for word in words.split() if "=" in word]
    assert targets and all(re.search(rf"^{name}:(?!=)", makefile, re.MULTILINE) for name in targets)
    assert settings and all(re.search(rf"^{name} \?=", makefile, re.MULTILINE) for name in settings)


@pytest.mark.parametrize(
    ("tool", "files"), [("hadolint", [IMAGE]), ("shellcheck", [SCRIPT, REPOSITORY / ".ci/run"])]
)
def test_linters_find_nothing(tool: str, files: list[Path]) -> None:
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    program = shutil.which(tool, path=places)
    install = f"no {tool} here; install the extra [dev]"
    if program is None and not os.environ.get("CI"):
        pytest.skip(install)
    assert program, install
    done = subprocess.run([program, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


def free_job() -> int:
    """Number of a job whose port is free."""
    for job in range(os.getpid() % 10000, 10000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 20000 + job)):
                return job
    raise AssertionError("no port is free")


def test_the_batch_script_runs_on_two_machines(tmp_path: Path) -> None:
    """Stand-ins for Slurm start a rank for each of two machines that are both this one."""
    for name, code in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(code, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    slurm = {
        "SLURM_JOB_ID": str(free_job()),
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "127.0.0.1,localhost",
    }
    frames = tmp_path / "frames.npy"
    samples = REPOSITORY / "model/samples"
    portrait, speech = samples / "ada.png", samples / "speech.wav"
    done = subprocess.run(
        ["bash", SCRIPT, "--preset", "tiny", "--device", "cpu", "--steps", "1", "--size", "32x48",
         "--portrait", portrait, "--audio", speech,
         "--output", frames],
        env=os.environ | slurm | {"PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 ranks" in done.stdout + done.stderr
    assert np.load(frames).shape[1:] == (32, 48, 3)
