"""Outputs that cannot be: refused or given up in one line, with nothing left behind."""

import errno
import io
import os
import shutil
import stat
from pathlib import Path

import pytest
from cli_tools import FAST, generate, prepare, refused

from livetalk_kernels.outputs import PartFile
from livetalk_model.cli.main import main

ROOM = 150_000


class SmallDisk(io.FileIO):
    """A file on a disk that takes no more than `ROOM` bytes of it."""

    def write(self, data) -> int:
        if self.tell() + len(data) > ROOM:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every output is on a `SmallDisk`; the files opened so."""
    opened: list[Path] = []

    def open_there(self: PartFile):
        opened.append(self.part)
        return io.BufferedWriter(SmallDisk(str(self.part), "wb"))

    monkeypatch.setattr(PartFile, "open", open_there)
    return opened


@pytest.mark.parametrize("name", ["x.avatar", "new/folder/x.avatar"])
def test_disk_too_full_for_the_avatar(name, portrait, out, small_disk, capsys):
    code = prepare("--portrait", portrait, "--output", out / name)
    assert "disk is full; free some space" in refused(capsys, code, str(out / name))
    assert small_disk and not list(out.iterdir())


def test_old_avatar_survives_a_full_disk(portrait, out, small_disk, capsys):
    old = out / "x.avatar"
    old.write_bytes(b"old")
    refused(capsys, prepare("--portrait", portrait, "--output", old))
    assert [file.name for file in out.iterdir()] == ["x.avatar"] and old.read_bytes() == b"old"


@pytest.mark.parametrize("name", ["file/x.mp4", "", "x.gif"])
def test_impossible_outputs(name, portrait, speech, out, capsys):
    (out / "file").write_text("in the way")
    before = sorted(out.rglob("*"))
    code = generate("--portrait", portrait, "--audio", speech, "--output", out / name, *FAST)
    refused(capsys, code)
    assert sorted(out.rglob("*")) == before


@pytest.mark.parametrize("folder", ["/proc", "/proc/new"])
def test_folder_in_which_not_even_root_may_write(folder, portrait, speech, capsys):
    for name in ("x.mp4", "x.npy"):
        path = f"{folder}/{name}"
        code = generate("--portrait", portrait, "--audio", speech, "--output", path, *FAST)
        refused(capsys, code, path, "use another output")
    code = prepare("--portrait", portrait, "--output", f"{folder}/x.avatar")
    refused(capsys, code, f"{folder}/x.avatar", "use another output")


def test_prepare_makes_its_folder(portrait, out):
    path = out / "new" / "folder" / "x.avatar"
    assert prepare("--portrait", portrait, "--output", path) == 0
    assert [file.name for file in path.parent.iterdir()] == ["x.avatar"]


# The output is an input ------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["itself", "symlink to it", "symlink in its place", "other way"])
def test_output_that_is_the_audio(kind, portrait, speech, tmp_path, capsys):
    audio = tmp_path / "talk.mp4"  # FFmpeg goes by the content
    shutil.copy(speech, audio)
    output = audio
    if kind == "symlink to it":
        output = tmp_path / "other.mp4"
        output.symlink_to(audio)
    elif kind == "symlink in its place":
        audio = tmp_path / "talk.wav"
        audio.symlink_to(output)
    elif kind == "other way":
        output = tmp_path / "x" / ".." / "talk.mp4"
        (tmp_path / "x").mkdir()
    before = audio.read_bytes()
    code = generate("--portrait", portrait, "--audio", audio, "--output", output, *FAST)
    refused(capsys, code, str(output), str(audio), "another name")
    assert audio.read_bytes() == before


@pytest.mark.parametrize("option", ["--portrait", "--avatar"])
def test_output_that_is_the_picture_or_the_avatar(option, portrait, speech, tmp_path, capsys):
    source = tmp_path / "x.mp4"
    source.write_bytes(portrait.read_bytes())
    code = generate(option, source, "--audio", speech, "--output", source, "--steps", 1)
    refused(capsys, code, "x.mp4", "is the input")
    assert source.read_bytes() == portrait.read_bytes()


@pytest.mark.parametrize("option", ["--portrait", "--prompt-embeds", "--image-embeds"])
def test_avatar_that_is_an_input(option, portrait, tmp_path, capsys):
    source = tmp_path / "x.safetensors"
    source.write_bytes(portrait.read_bytes())
    given = {"--portrait": portrait, option: source}
    code = prepare(*(word for pair in given.items() for word in pair), "--output", source)
    refused(capsys, code, "x.safetensors", "is the input")
    assert source.read_bytes() == portrait.read_bytes()


# Something else is there ----------------------------------------------------------------


SMALL = ("--preset", "tiny", "--device", "cpu")
TALK = ("generate", *SMALL, "--portrait", "{portrait}", "--audio", "{speech}", *FAST)
COMMANDS = {  # every option that names an output -> a command, and the file's name at its end
    "generate --output": (*TALK, "--output", "x.mp4"),
    "generate --timeline": (*TALK, "--output", "{tmp_path}/new.mp4", "--timeline", "x.json"),
    "prepare --output": ("prepare", *SMALL, "--portrait", "{portrait}", "--output", "x.avatar"),
    "bench --csv": ("bench", "add_norm", "--csv", "x.csv"),
    "bench --json": ("bench", "add_norm", "--json", "x.json"),
    "bench comm --json": ("bench", "comm", "--nproc", "2", "--device", "cpu", "--json", "x.json"),
    "tune --output": ("tune", "add_norm", "--output", "x.json"),
    "diff --output": ("diff", *SMALL, "--b", "precision=fp8", "--output", "x.json"),
    "diff --plot": ("diff", *SMALL, "--b", "precision=fp8", "--plot", "x.png"),
    "profile --output": ("profile", *SMALL, "--output", "report.json"),
    "profile --compare": ("profile", "--compare", "--preset tiny", "--preset tiny", "--output",
                          "compare.json"),
    "plan --plot": ("plan", "--gpu", "h200", "--gpus", "8", "--plot", "x.png"),
    "doctor --write-manifest": ("doctor", "--checkpoint", "{out}", "--write-manifest", "x"),
    "inspect --save": ("inspect", "--save", "x.json"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["device", "FIFO"])
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_file_is_refused_by_every_command(
    name, kind, portrait, speech, out, tmp_path, capsys
):
    places = {"portrait": portrait, "speech": speech, "out": out, "tmp_path": tmp_path}
    *words, last = (word.format(**places) for word in COMMANDS[name])
    path = out / last
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/full")
    given = path.parent if words[0] == "profile" else path
    code = main([*words, str(given)])
    refused(capsys, code, str(path), f"is a {kind}")
    assert [file.name for file in out.iterdir()] == [path.name]
    assert not stat.S_ISREG(path.stat().st_mode)


@pytest.mark.parametrize("kind", ["itself", "link to it", "hard link", "file that it is a link to"])
def test_a_manifest_that_would_replace_what_it_lists(kind, tmp_path, capsys):
    weights, path = tmp_path / "weights", tmp_path / "m.sha256"
    weights.mkdir()
    file = weights / "a.safetensors"
    file.write_bytes(b"weights")
    if kind == "itself":
        path = file
    elif kind == "link to it":
        path.symlink_to(file)
    elif kind == "hard link":
        path.hardlink_to(file)
    else:
        path.write_bytes(b"weights")
        file.unlink()
        file.symlink_to(path)
    code = main(["doctor", "--checkpoint", str(weights), "--write-manifest", str(path)])
    refused(capsys, code, str(path), "give the manifest another name")
    assert file.read_bytes() == path.read_bytes() == b"weights"
