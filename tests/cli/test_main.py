import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from livetalk_kernels.errors import NumericsError, UserError
from livetalk_model.cli import common, main
from livetalk_model.config import PRESETS

REPOSITORY = Path(__file__).resolve().parents[2]
LIVETALK = [sys.executable, "-m", "livetalk_model.cli.main"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LIVETALK, *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_help_lists_all_commands_without_waiting_for_torch():
    code = (
        "import sys; from livetalk_model.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert all(command in result.stdout for command in main.COMMANDS)
    assert "example:" in result.stdout


@pytest.mark.parametrize("command", list(main.COMMANDS))
def test_every_command_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main([command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert re.search(rf"example:\n  livetalk {command} ", shown)


@pytest.mark.parametrize("command", ["", *main.COMMANDS])
def test_help_fits_80_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main.main([command, "--help"] if command else ["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10
    assert not [line for line in lines if len(line) > 80]


def test_letters_of_the_options(capsys):
    with pytest.raises(SystemExit):
        main.main(["generate", "--help"])
    shown = capsys.readouterr().out
    for option in ("--shift S", "--color-correction S", "--steps N", "--seed N", "--size HxW"):
        assert f"  {option} " in shown


@pytest.mark.parametrize("command", ["prepare", "generate", "doctor"])
def test_examples_call_the_checkpoint_by_its_name(command, capsys):
    with pytest.raises(SystemExit):
        main.main([command, "--help"])
    named = re.findall(r"--checkpoint (\w\S+)", capsys.readouterr().out.split("example:")[1])
    assert named == ["SoulX-FlashTalk-14B"]
    assert "SoulX-FlashTalk-14B" in (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("arguments", [[], ["bogus"], ["doctor", "--bogus"], ["backends", "x"]])
def test_wrong_arguments_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main.main(arguments)
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1 and "--help" in printed.err


class Command:
    """A subcommand module that does what the test says."""

    def __init__(self, outcome: BaseException | int) -> None:
        self.outcome = outcome

    def add_parser(self, subparsers) -> None:
        subparsers.add_parser("doctor").set_defaults(run=self.run)

    def run(self, args) -> int:
        if isinstance(self.outcome, int):
            return self.outcome
        raise self.outcome


@pytest.mark.parametrize(
    ("outcome", "code", "line"),
    [
        (0, 0, ""),
        (1, 1, ""),
        (UserError("x.wav: empty; record it"), 2, "error: x.wav: empty; record it\n"),
        (NumericsError("VAE decode", "NaN"), 1, "error: VAE decode: NaN\n"),
        (KeyboardInterrupt(), common.INTERRUPTED, "interrupted\n"),
    ],
)
def test_outcomes_become_exit_codes(outcome, code, line, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "livetalk_model.cli.doctor", Command(outcome))
    assert main.main(["doctor"]) == code
    assert capsys.readouterr().err == line


TOO_LITTLE = "error: out of memory; use a smaller --size or --preset, or --dtype bf16\n"


def cpu_allocator_error() -> RuntimeError:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    "make",
    [
        MemoryError,
        lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nSee"),
        lambda: RuntimeError("CUDA error: out of memory"),
        cpu_allocator_error,
    ],
)
def test_out_of_memory_is_one_line(make, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "livetalk_model.cli.doctor", Command(make()))
    assert main.main(["doctor"]) == 1
    assert capsys.readouterr().err == TOO_LITTLE


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), KeyError("x"), OSError("y")])
def test_a_bug_keeps_its_traceback(error, monkeypatch):
    monkeypatch.setitem(sys.modules, "livetalk_model.cli.doctor", Command(error))
    with pytest.raises(type(error)):
        main.main(["doctor"])


def test_a_picture_larger_than_memory(portrait, speech, out):
    """The address space ends 4 GiB beyond what the imports take; the clip needs 6.6 GB."""
    code = (
        "import resource, sys\n"
        "from livetalk_model.cli.main import main\n"
        "import livetalk_model.loading\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "limit = pages * resource.getpagesize() + (4 << 30)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = ["generate", "--device", "cpu", "--dtype", "fp32", "--size", "4096x4096"]
    command += ["--portrait", str(portrait), "--audio", str(speech), "--output", str(out / "x.mp4")]
    result = subprocess.run(
        [sys.executable, "-c", code, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (result.returncode, result.stdout, result.stderr) == (1, "", TOO_LITTLE)
    assert not list(out.iterdir())


def test_a_user_error_has_no_traceback(tmp_path):
    result = run("doctor", "--checkpoint", str(tmp_path / "nowhere"))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1


def test_a_closed_pipe_is_no_error():
    with subprocess.Popen(
        [*LIVETALK, "backends"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""


def test_ctrl_c_is_one_line(tmp_path: Path):
    """Hashing a large sparse file takes long enough to be interrupted."""
    (tmp_path / "x").mkdir()
    with (tmp_path / "x/huge").open("wb") as file:
        file.truncate(1 << 40)
    command = ["doctor", "--checkpoint", str(tmp_path / "x")]
    with subprocess.Popen(
        [*LIVETALK, *command, "--write-manifest", str(tmp_path / "manifest")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        fields = Path(f"/proc/{process.pid}/io")
        deadline = time.monotonic() + 60
        while int(fields.read_text().split()[1]) < 10**9 and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == common.INTERRUPTED
    assert errors.splitlines()[-1] == "interrupted" and "Traceback" not in errors
    assert not list(tmp_path.glob("manifest*"))


def test_presets_in_the_help_are_those_that_exist(capsys):
    with pytest.raises(SystemExit):
        main.main(["generate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(name in shown for name in PRESETS)


@pytest.mark.parametrize(("text", "size"), [("768x448", (768, 448)), ("64X32", (64, 32))])
def test_sizes_are_height_first(text, size):
    assert common.parse_size(text) == size


@pytest.mark.parametrize("text", ["768", "x", "768x", "-16x16", "1.5x2", "64x64x64", "²x16"])
def test_sizes_of_another_form(text):
    with pytest.raises(common.argparse.ArgumentTypeError, match="HxW"):
        common.parse_size(text)
