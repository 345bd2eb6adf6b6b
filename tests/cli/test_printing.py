"""What is printed: any name in one line, on any standard output, with the right exit code."""

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import FAST, generate
from PIL import Image

from livetalk_kernels.errors import NumericsError, UserError
from livetalk_kernels.lines import LONGEST, list_keys, one_line
from livetalk_kernels.runtime.ranks.signals import say
from livetalk_model.cli import common, main, progress

BYTES = os.fsdecode(b"no\xff\xfe")
NASTY = "a\nb\x1b[31m\u202ered\x07[bold]:cat:[/x]"
SHOWN = r"a\nb\x1b[31m\u202ered\x07[bold]:cat:[/x]"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain, with ümlauts, 中文 and 🙂", "plain, with ümlauts, 中文 and 🙂"),
        (NASTY, SHOWN),
        ("tab\tand\r\n", r"tab\tand\r\n"),
        ("\u2066isolate\u2069 \u2028 \x85 \x9b", r"\u2066isolate\u2069 \u2028 \x85 \x9b"),
        (BYTES, r"no\xff\xfe"),
        ("\ud800", r"\ud800"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        (r"C:\new", r"C:\new"),
        ("", ""),
    ],
)
def test_one_line(text: str, line: str) -> None:
    assert one_line(text) == line == one_line(line)


@pytest.mark.parametrize("letter", ["x", "\x1b", "\U0010ffff"])
def test_long_texts_keep_their_ends(letter: str) -> None:
    line = one_line(f"error: {letter * 100_000}; do this")
    assert len(line) <= LONGEST and line.startswith("error: ") and line.endswith("; do this")
    assert line == one_line(line)


def test_lists_of_names_stay_short() -> None:
    assert list_keys(["a", "b\n"]) == r"a, b\n"
    listed = list_keys(f"{i}" + "x" * 69_000 for i in range(20))
    assert len(listed) < 2000 and listed.endswith(", and 12 more")


# Every way a line gets to the terminal


class Command:
    """A subcommand that does what the test says."""

    def __init__(self, act) -> None:
        self.act = act

    def add_parser(self, subparsers) -> None:
        subparsers.add_parser("doctor").set_defaults(run=self.run)

    def run(self, args) -> int:
        return self.act() or 0


@pytest.fixture
def act(monkeypatch: pytest.MonkeyPatch):
    """Make ``livetalk doctor`` run a function; return the exit code."""

    def run(function) -> int:
        monkeypatch.setitem(sys.modules, "livetalk_model.cli.doctor", Command(function))
        return main.main(["doctor"])

    return run


def failing(error: BaseException):
    def fail() -> None:
        raise error

    return fail


def rich_name() -> None:
    common.console().print(f"[bold]{common.escape(NASTY)}[/]", soft_wrap=True)


@pytest.mark.parametrize(
    ("function", "stream", "line"),
    [
        (failing(UserError(NASTY)), "err", f"error: {SHOWN}"),
        (failing(NumericsError(NASTY, "NaN")), "err", f"error: {SHOWN}: NaN"),
        (lambda: common.note(NASTY), "err", SHOWN),
        (lambda: common.warn([NASTY]), "err", f"warning: {SHOWN}"),
        (lambda: logging.getLogger("x").warning("%s", NASTY), "err", SHOWN),
        (rich_name, "out", SHOWN),
    ],
    ids=["user error", "numerics", "note", "warning", "log", "rich"],
)
def test_names_are_one_line_wherever_they_are_printed(function, stream, line, act, capsys) -> None:
    act(function)
    assert getattr(capsys.readouterr(), stream) == line + "\n"


def test_the_voice_of_other_threads_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    say(f"killed; {NASTY}{BYTES}")
    assert capfd.readouterr().err == f"killed; {SHOWN}" + r"no\xff\xfe" + "\n"


def test_a_changing_line_takes_any_name() -> None:
    """On a terminal, of few letters as well; markup in the name is printed as text."""
    for encoding in ("utf-8", "ascii"):
        screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        from rich.console import Console

        out = Console(file=screen, force_terminal=True, width=120)
        with progress.status_line(out) as show:
            show(NASTY)
            out.print("x")
        screen.flush()
        assert SHOWN.encode() in screen.buffer.getvalue()


def test_commands_escape_with_our_own_function() -> None:
    """Rich's leaves line ends and escape sequences in."""
    files = Path(common.__file__).parent.glob("*.py")
    text = {file.name: file.read_text(encoding="utf-8") for file in files}
    assert [name for name, code in text.items() if "from rich.markup" in code] == ["common.py"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor", "--checkpoint", NASTY],
        ["doctor", "--checkpoint", BYTES],
        ["doctor", NASTY],
        [NASTY],
        ["generate", "--size", NASTY],
        ["generate", "--portrait", NASTY, "--audio", NASTY, "--output", f"{NASTY}.mp4"],
        ["prepare", "--portrait", NASTY, "--output", f"{NASTY}.png"],
        ["prepare", "--portrait", "x", "--crop", NASTY, "--output", "x.avatar"],
        ["backends", "--device", NASTY],
        ["backends", "--config", NASTY],
        ["bench", NASTY],
        ["tune", NASTY],
        ["inspect", NASTY],
        ["plan", "--gpu", NASTY],
        ["profile", "--backend", NASTY],
        ["diff", "--a", NASTY],
        ["profile", "--backend", "x" * 200_000],
        ["x" * 200_000],
    ],
    ids=lambda words: " ".join(words)[:30].encode("ascii", "backslashreplace").decode(),
)
def test_refusals_are_one_line(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main.main(arguments)
    except SystemExit as stop:
        code = stop.code
    error = capfd.readouterr().err
    assert code == 2, error
    assert error.startswith("error: ") and error.endswith("\n") and len(error) <= LONGEST + 1
    assert error[:-1].isprintable()


def test_no_folder_for_temporary_files_is_one_line(act, capsys, monkeypatch) -> None:
    """As in a container that is read-only; what needs one says which ones it has tried."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/1"])
    assert act(lambda: tempfile.mkdtemp()) == 1
    error = capsys.readouterr().err
    assert (
        error.startswith("error: no writable folder for temporary files") and error.count("\n") == 1
    )


# Standard output that takes nothing


@contextlib.contextmanager
def stdout_is(kind: str) -> Iterator[None]:
    """Replace the process's standard output: ``full``, ``closed`` or a ``pipe`` without reader."""
    before, descriptor = sys.stdout, os.dup(1)
    try:
        match kind:
            case "full":
                target = os.open("/dev/full", os.O_WRONLY)
            case "pipe":
                reader, target = os.pipe()
                os.close(reader)
            case "closed":
                target = os.open(os.devnull, os.O_RDONLY)  # a descriptor that takes nothing
        os.dup2(target, 1)
        os.close(target)
        sys.stdout = None if kind == "closed" else open(1, "w", closefd=False)  # noqa: SIM115
        yield
        if sys.stdout is not None:
            sys.stdout.flush()  # as at exit; nothing is left that could fail
    finally:
        sys.stdout = before
        os.dup2(descriptor, 1)
        os.close(descriptor)


REASONS = {"full": "No space left on device", "closed": "Bad file descriptor", "pipe": None}
SOME = [
    ["--help"],
    ["--version"],
    *([name, "--help"] for name in main.COMMANDS),
    ["backends", "--device", "cpu"],
    ["backends", "--device", "cpu", "--json"],
    ["doctor"],
    ["doctor", "--json"],
    ["plan", "--gpu", "h800"],
    ["plan", "--gpu", "h800", "--json"],
]


@pytest.mark.parametrize("kind", list(REASONS))
@pytest.mark.parametrize("arguments", SOME, ids=" ".join)
def test_output_that_cannot_be_written_is_one_line(
    arguments: list[str], kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with stdout_is(kind):
        try:
            code = main.main(arguments)
        except SystemExit as stop:
            code = stop.code
    reason = REASONS[kind]
    said = f"error: cannot write to standard output ({reason}); redirect it elsewhere\n"
    assert (code, capfd.readouterr().err) == (1, said if reason else "")


@pytest.mark.parametrize("kind", list(REASONS))
@pytest.mark.parametrize("code", [0, 1, 2, common.INTERRUPTED])
def test_the_commands_own_code_counts(kind: str, code: int, act, capfd) -> None:
    def work() -> int:
        with contextlib.suppress(main.ReaderGoneError):
            print("x" * 20_000)
        return code

    with stdout_is(kind):
        assert act(work) == (code or 1)
    assert "Traceback" not in capfd.readouterr().err


def test_a_command_ends_when_nobody_reads(act) -> None:
    def work() -> None:
        for _ in range(100):
            print("x" * 20_000)
        pytest.fail("continued")

    with stdout_is("pipe"):
        assert act(work) == 1


def test_nothing_printed_nothing_lost(act, capfd) -> None:
    for kind in REASONS:
        with stdout_is(kind):
            assert act(lambda: 0) == 0
    assert capfd.readouterr().err == ""


def test_the_streams_are_put_back(act) -> None:
    before = sys.stdout, sys.stderr, list(logging.getLogger().handlers)
    act(lambda: 0)
    with pytest.raises(KeyError):
        act(failing(KeyError("a bug")))
    assert (sys.stdout, sys.stderr, logging.getLogger().handlers) == before


LIVETALK = [sys.executable, "-m", "livetalk_model"]
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line in a real shell, in which $L is the command."""
    return subprocess.run(
        ["sh", "-c", line],
        env={**os.environ, "L": " ".join(LIVETALK), **environment},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("$L --help > /dev/full", 1),
        ("$L generate --help >&-", 1),
        ("$L --help >&- 2>&-", 1),
        ("$L --help > /dev/full 2> /dev/full", 1),
        ("$L bogus 2>&-", 2),
        ("$L bogus 2> /dev/full", 2),
        ("$L --version 2>&- <&-", 0),
    ],
)
def test_real_streams(line: str, code: int) -> None:
    done = shell(line)
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert done.stderr.count("\n") <= 1


def test_the_video_is_whole_without_any_streams(portrait, speech, out: Path) -> None:
    """A file that is opened gets no number that others write to; the name is of no encoding."""
    name = os.fsencode("Дрюн") + b"\xff.npy"
    words = ["$L generate --preset tiny --device cpu", *FAST, f"--portrait '{portrait}'"]
    words += [f"--audio '{speech}' --output '{out / os.fsdecode(name)}' >&- 2>&- <&-"]
    done = shell(" ".join(words), **PLAIN)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert os.listdir(os.fsencode(out)) == [name]
    assert (out / os.fsdecode(name)).stat().st_size == 128 + 38 * 32 * 48 * 3


@pytest.mark.parametrize("kind", list(REASONS))
@pytest.mark.parametrize("json", [[], ["--json"]])
def test_the_video_is_whole(kind, json: list[str], portrait, speech, out: Path, capfd) -> None:
    command = ["--portrait", portrait, "--audio", speech, "--output", out / "a.npy", *FAST, *json]
    with stdout_is(kind):
        assert generate(*command) == 1
    assert [file.name for file in out.iterdir()] == ["a.npy"]
    assert (out / "a.npy").stat().st_size == 128 + 38 * 32 * 48 * 3
    lines = capfd.readouterr().err.splitlines()  # on a slow machine with the progress
    assert sum(line.startswith("error: cannot write to standard output") for line in lines) == (
        kind != "pipe"
    )
    assert not [line for line in lines if "Traceback" in line]


@pytest.mark.parametrize(("encoding", "columns"), [("ascii", 80), ("latin-1", 80), ("utf-8", 40)])
def test_any_name_in_any_locale(
    encoding: str, columns: int, portrait, speech, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = os.fsencode("Дрюн[bold]:cat:\n") + b"\xff.npy"
    printed = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", printed)
    monkeypatch.setenv("COLUMNS", str(columns))
    target = out / os.fsdecode(name)
    assert generate("--portrait", portrait, "--audio", speech, "--output", target, *FAST) == 0
    assert os.listdir(os.fsencode(out)) == [name]
    printed.flush()
    text = printed.buffer.getvalue().decode(encoding)
    (line,) = [line for line in text.splitlines() if line.startswith("wrote ")]
    assert r"[bold]:cat:\n\xff.npy: 38 frames" in line
    table = [line for line in text.splitlines() if line.startswith((" ", "|"))]
    assert len(table) > 5 and max(map(len, table)) <= columns


# Small conveniences


@pytest.mark.parametrize("command", [["livetalk_model"], ["livetalk_model.cli.main"]])
def test_the_version(command: list[str]) -> None:
    done = shell(f"{sys.executable} -m {command[0]} --version")
    assert re.fullmatch(r"livetalk \d+\.\d+\.\d+\n", done.stdout) and done.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["genrate"], "generate"),
        (["generate", "--protrait", "x"], "--portrait"),
        (["doctor", "--chekpoint=x"], "--checkpoint"),
        (["backends", "--jsn"], "--json"),
        (["--verson"], "--version"),
        (["xyzzy"], None),
        (["doctor", "--xyzzy"], None),
        (["doctor", "--check", "x", "y"], None),
    ],
)
def test_the_nearest_word_is_offered(arguments, meant, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert (f"did you mean {meant}?" in error) if meant else "did you mean" not in error


@pytest.mark.parametrize(("name", "dtype"), [("float32", "fp32"), ("bfloat16", "bf16")])
def test_dtypes_by_torchs_names(name: str, dtype: str, capsys) -> None:
    shown = []
    for word in (name, dtype):
        assert main.main(["backends", "--device", "cpu", "--dtype", word, "--json"]) == 0
        shown.append(json.loads(capsys.readouterr().out))
    assert shown[0] == shown[1] and shown[0]["dtype"] == f"torch.{name}"
    command = ["doctor", "--memory", "--preset", "tiny", "--device", "cpu", "--json", "--dtype"]
    assert main.main([*command, name]) == 0
    assert f'"dtype": "{dtype}"' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main.main(["backends", "--dtype", "float64"])


# Portraits on the command line


@pytest.mark.parametrize("crop", ["top", "10,20,64,40", "center"])
def test_a_crop_is_taken(crop: str, tmp_path: Path, capsys) -> None:
    portrait = tmp_path / "tall.png"
    Image.new("RGB", (80, 200)).save(portrait)
    command = ["prepare", "--preset", "tiny", "--device", "cpu", "--size", "32x48", "--json"]
    command += ["--portrait", str(portrait), "--output", str(tmp_path / "a.avatar")]
    assert main.main(command) == 0
    shown = capsys.readouterr()
    (warning,) = json.loads(shown.out)["warnings"]
    assert shown.err == f"warning: {warning}\n" and "removes 73%" in warning
    assert main.main([*command, "--crop", crop]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["warnings"] == [] and shown.err == ""


def test_a_crop_beyond_the_picture_or_of_an_avatar(portrait, speech, out: Path, capsys) -> None:
    command = ["generate", "--audio", str(speech), "--output", str(out / "a.mp4"), "--crop"]
    for crop, says in (("0,0,99,80", "reaches beyond"), ("left", "is not top, centre or x,y,w,h")):
        assert main.main([*command, crop, "--portrait", str(portrait)]) == 2
        assert says in capsys.readouterr().err
    assert main.main([*command, "top", "--avatar", "x.avatar"]) == 2
    assert "--crop: needs --portrait" in capsys.readouterr().err
