"""``livetalk generate`` that ends early: what is finished is kept, and reported to the user."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from cli_tools import FAST, generate, write_wav

from livetalk_model.media.frames import WholeWrites
from livetalk_model.stream.chunk import ChunkGenerator

ROOM = 150_000


def frames_of(path: Path) -> int:
    if path.suffix == ".npy":
        return len(np.load(path))
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def broken_sound(path: Path, seconds: float) -> Path:
    """A float WAV file with NaN in its last second."""
    write_wav(path, seconds)
    head, data = path.read_bytes()[:44], np.frombuffer(path.read_bytes()[44:], "<i2")
    samples = (data / 32768).astype("<f4")
    samples[-8000] = np.nan
    head = bytearray(head)
    head[20], head[32], head[34] = 3, 4, 32
    head[28:32] = (64_000).to_bytes(4, "little")
    head[40:44] = (4 * len(samples)).to_bytes(4, "little")
    path.write_bytes(bytes(head) + samples.tobytes())
    return path


@pytest.mark.parametrize("name", ["x.mp4", "x.npy"])
@pytest.mark.parametrize("as_json", [False, True])
def test_sound_that_fails_late(name, as_json, portrait, out, tmp_path, capsys):
    audio = broken_sound(tmp_path / "late.wav", 8.0)
    more = ["--json"] if as_json else []
    code = generate("--portrait", portrait, "--audio", audio, "--output", out / name, *FAST, *more)
    printed = capsys.readouterr()
    assert code == 2
    assert [file.name for file in out.iterdir()] == [name]
    frames = frames_of(out / name)
    assert 100 <= frames <= 200
    last = printed.err.splitlines()[-1]  # on a busy machine a line of progress comes before
    assert re.fullmatch(r"error: \S+late\.wav: holds NaN.*", last)
    if as_json:
        output = json.loads(printed.out)["output"]
        assert (output["frames"], output["complete"]) == (frames, False)
    else:
        assert f"{frames} frames of 32x48, {frames / 25:.2f} s (stopped early)" in printed.out


def test_sound_that_fails_before_the_first_frame_leaves_nothing(portrait, out, tmp_path, capsys):
    audio = broken_sound(tmp_path / "soon.wav", 0.6)
    code = generate("--portrait", portrait, "--audio", audio, "--output", out / "x.mp4", *FAST)
    assert code == 2 and not list(out.iterdir())
    assert re.fullmatch(r"error: \S+soon\.wav: holds NaN[^\n]*\n", capsys.readouterr().err)


@pytest.mark.parametrize("name", ["x.mp4", "x.npy", "new/folder/x.npy"])
def test_disk_that_fills_up(name, portrait, out, tmp_path, monkeypatch, capsys):
    writes = WholeWrites.write

    def write(self: WholeWrites, data: bytes) -> int:
        if self.tell() + len(data) > ROOM:
            self.failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return writes(self, data)

    monkeypatch.setattr(WholeWrites, "write", write)
    audio = write_wav(tmp_path / "long.wav", 12.0)
    path = out / name
    code = generate("--portrait", portrait, "--audio", audio, "--output", path, *FAST)
    printed = capsys.readouterr()
    frames = frames_of(path)
    assert code == 2 and [file.name for file in path.parent.iterdir()] == [path.name]
    assert 0 < frames < 300
    assert f"{frames} frames of 32x48, {frames / 25:.2f} s (stopped early)" in printed.out
    last = printed.err.splitlines()[-1]
    assert last.startswith(f"error: {path}: the disk is full; free some space")
    assert last.endswith(f"the first {frames} frames are kept")
    assert ("has no index" in printed.err) == (path.suffix == ".mp4")


def test_limits_of_the_shell(portrait, out, tmp_path):
    """Few open files are enough; a file that may not grow is as a full disk, and not a signal."""
    audio = write_wav(tmp_path / "long.wav", 8.0)
    command = [
        sys.executable, "-m", "livetalk_model.cli.main", "generate", "--preset", "tiny", "--device",
        "cpu", "--portrait", portrait, "--audio", audio, "--output", out / "x.mp4", *FAST,
    ]  # fmt: skip

    def limit() -> None:  # as ulimit -f and -n do
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))

    run = subprocess.run(
        [*map(str, command)], preexec_fn=limit, check=False, capture_output=True, text=True
    )
    assert run.returncode == 2 and "Traceback" not in run.stderr, run.stderr
    frames = frames_of(out / "x.mp4")
    assert 0 < frames < 200 and f"{frames} frames of 32x48" in run.stdout
    assert run.stderr.splitlines()[-1].endswith(f"the first {frames} frames are kept")


def test_a_fault_of_our_own_keeps_the_video(portrait, out, tmp_path, monkeypatch, capsys):
    chunks = ChunkGenerator.chunk
    count = iter(range(100))

    def chunk(self, *given, **named):
        if next(count) == 2:
            raise RuntimeError("a bug")
        return chunks(self, *given, **named)

    monkeypatch.setattr(ChunkGenerator, "chunk", chunk)
    audio = write_wav(tmp_path / "long.wav", 6.0)
    with pytest.raises(RuntimeError, match="a bug"):
        generate("--portrait", portrait, "--audio", audio, "--output", out / "x.mp4", *FAST)
    assert frames_of(out / "x.mp4") == 56
    assert f"wrote {out / 'x.mp4'}: 56 frames (stopped early)\n" in capsys.readouterr().err


@pytest.mark.parametrize(("fps", "rate"), [("30000/1001", (30000, 1001)), ("23.98", (24000, 1001))])
def test_frame_rates(fps, rate, portrait, speech, out, capsys):
    path = out / "x.mp4"
    given = ("--portrait", portrait, "--audio", speech, "--output", path, *FAST)
    assert generate(*given, "--fps", fps, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["fps"] == rate[0] / rate[1]
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate.as_integer_ratio() == rate
