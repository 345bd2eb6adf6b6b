"""The README's commands, options and example work as written."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
OPTION = r"--[a-z][a-z-]+"


def command_lines() -> list[str]:
    """Return the command lines of the README's shell blocks, continuation lines joined."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [code for line in lines if (code := line.partition("#")[0].strip())]


@cache
def help_of(command: str) -> str:
    """Return what ``livetalk COMMAND --help`` prints; fail if the command does not exist."""
    script = Path(sys.executable).with_name("livetalk")
    result = subprocess.run(
        [script, command, "--help"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"},
    )
    assert result.returncode == 0, f"livetalk {command} --help: {result.stderr}"
    return result.stdout


def options_of(command: str) -> set[str]:
    return set(re.findall(OPTION, help_of(command)))


def test_named_commands_exist() -> None:
    """Every `livetalk x` in the README's text and tables is a command."""
    commands = set(re.findall(r"`livetalk ([a-z]+)\b", README))
    commands |= set(re.findall(r"^\| `([a-z]+)` \|", README, re.MULTILINE))
    assert {"prepare", "generate", "doctor", "backends"} <= commands
    for command in sorted(commands):
        assert "usage" in help_of(command).lower()


def test_command_lines_use_existing_options() -> None:
    lines = [shlex.split(line) for line in command_lines()]
    calls = [line for line in lines if Path(line[0]).name == "livetalk"]
    assert calls
    for _, command, *arguments in calls:
        options = {word.split("=")[0] for word in arguments if word.startswith("--")}
        known = options_of(command)
        assert options <= known, f"livetalk {command}: {options - known}"


def test_options_in_the_table_are_those_of_generate() -> None:
    rows = "\n".join(re.findall(r"^\| (`--.*?) \|", README, re.MULTILINE))
    options = set(re.findall(OPTION, rows))
    assert options
    assert options <= options_of("generate"), options - options_of("generate")


def test_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):(?!=)", makefile, re.MULTILINE))
    used = {line.split()[1] for line in command_lines() if line.startswith("make ")}
    assert {"demo", "test"} <= used <= targets


def test_named_files_exist() -> None:
    """Relative links and the bundled examples that the README names are in the repository."""
    named = re.findall(r"\]\(([\w./-]+)\)", README) + re.findall(r"model/samples/[\w.]+", README)
    assert not [name for name in sorted(set(named)) if not (REPOSITORY / name).exists()]


def test_the_library_example_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With three seconds of noise for a microphone, it shows three seconds of frames."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 3 * 16000).astype(np.float32)
    shown: list[np.ndarray] = []

    def microphone() -> Iterator[np.ndarray]:
        yield from np.array_split(noise, 7)

    monkeypatch.chdir(REPOSITORY)
    exec(compile(code, "README.md", "exec"), {"microphone": microphone, "show": shown.append})
    frames = np.concatenate(shown)
    assert frames.dtype == np.uint8
    assert frames.shape == (75, 96, 96, 3)
