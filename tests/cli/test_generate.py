"""``livetalk generate`` and ``livetalk prepare`` as a user runs them."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from livetalk_model.cli.main import main

RATE = 16000
FAST = ["--steps", "1", "--size", "32x48"]


def write_wav(path: Path, seconds: float, rate: int = RATE) -> Path:
    """A tone with a rhythm, 16 bit mono."""
    t = np.arange(round(seconds * rate)) / rate
    samples = (np.sin(t * 1200) * np.sin(t * 8) ** 2 * 9000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


@pytest.fixture
def portrait(tmp_path: Path) -> Path:
    """A picture."""
    path = tmp_path / "portrait.png"
    y, x = np.mgrid[:80, :70]
    Image.fromarray(np.stack([3 * x, 3 * y, 90 + 0 * x], -1).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """1.5 s of sound."""
    return write_wav(tmp_path / "speech.wav", 1.5)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder for the output."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def probe(path: Path) -> tuple[int, float, float, tuple[int, int]]:
    """Frames, seconds of video and of sound, and (height, width)."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        frames = sum(1 for _ in container.decode(video))
        size = video.height, video.width
    with av.open(str(path)) as container:
        sound = container.streams.audio[0]
        samples = sum(frame.samples for frame in container.decode(sound))
        return frames, frames / 25, samples / sound.rate, size


def generate(*extra: object) -> int:
    """Exit code of ``livetalk generate --preset tiny``, small and quick."""
    return main(["generate", "--preset", "tiny", "--device", "cpu", *map(str, extra)])


# What comes out --------------------------------------------------------------------------


def test_portrait_and_speech_to_video(portrait, speech, out, capsys):
    video = out / "talk.mp4"
    assert generate("--portrait", portrait, "--audio", speech, "--output", video, *FAST) == 0
    assert [p.name for p in out.iterdir()] == ["talk.mp4"]
    frames, seconds, sound, size = probe(video)
    assert (frames, size) == (38, (32, 48))
    assert abs(seconds - sound) <= 1 / 25
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[2:])) <= 80
    for word in ("random", "start-up", "chunk p50", "chunk p95", "frames/s", "underrun", "peak"):
        assert word in printed


def test_npy_and_json(portrait, speech, out, capsys):
    target = out / "talk.npy"
    code = generate(
        "--portrait", portrait, "--audio", speech, "--output", target, "--json", *FAST
    )  # fmt: skip
    assert code == 0
    frames = np.load(target)
    assert frames.shape == (38, 32, 48, 3) and frames.dtype == np.uint8
    report = json.loads(capsys.readouterr().out)
    assert report["frames"] == 38 and report["output"]["complete"]
    assert report["settings"]["random_weights"] is True
    assert report["chunks"]["count"] == 2
    assert 0 < report["startup"]["first_frame"] < report["wall"]


def test_avatar_file_gives_the_same_video(portrait, speech, out):
    avatar = out / "me.avatar"
    assert main(["prepare", "--portrait", str(portrait), "--size", "32x48", "--output",
                 str(avatar), "--device", "cpu"]) == 0  # fmt: skip
    direct, later = out / "direct.npy", out / "later.npy"
    assert generate("--portrait", portrait, "--audio", speech, "--output", direct, *FAST) == 0
    assert generate("--avatar", avatar, "--audio", speech, "--output", later, "--steps", 1) == 0
    assert np.array_equal(np.load(direct), np.load(later))


def test_checkpoint_with_precomputed_embeddings(golden, golden_checkpoint, portrait, speech, out):
    conditioning = golden("e2e_conditioning")
    text, image = out / "text.safetensors", out / "image.safetensors"
    save_file({"context": conditioning["context"]}, text)
    save_file({"clip_fea": conditioning["clip_fea"]}, image)
    model = ["--checkpoint", str(golden_checkpoint("tiny_a")),
             "--audio-encoder", str(golden_checkpoint("w2v_768"))]  # fmt: skip
    command = ["generate", *model, "--portrait", str(portrait), "--audio", str(speech),
               "--prompt-embeds", str(text), "--image-embeds", str(image), *FAST]  # fmt: skip
    assert main([*command, "--output", str(out / "a.npy")]) == 0
    assert np.load(out / "a.npy").shape == (38, 32, 48, 3)


# What is refused -------------------------------------------------------------------------


def refused(capsys: pytest.CaptureFixture, code: int, *names: str) -> str:
    """Exit code 2 and one line that names the file."""
    error = capsys.readouterr().err.strip()
    assert code == 2, error
    assert error.startswith("error: ") and "\n" not in error and "Traceback" not in error
    for name in names:
        assert name in error
    return error


def bad_audio(kind: str, folder: Path) -> Path:
    """A sound file that is no good."""
    path = folder / f"{kind}.wav"
    good = write_wav(folder / "good.wav", 0.5).read_bytes()
    (folder / "good.wav").unlink()
    if kind == "nan":
        data = np.full(8000, np.nan, "<f4").tobytes()
        fmt = b"fmt \x10\0\0\0\x03\0\x01\0\x80>\0\0\0\xfa\0\0\x04\0\x20\0"
        body = b"WAVE" + fmt + b"data" + len(data).to_bytes(4, "little") + data
        path.write_bytes(b"RIFF" + len(body).to_bytes(4, "little") + body)
    elif kind == "zero":
        write_wav(path, 0)
    else:
        content = {"empty": b"", "header": good[:44], "cut": good[:30], "text": b"Hello there\n"}
        if kind != "missing":
            path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "header", "cut", "text", "nan", "zero"])
def test_bad_audio(kind, portrait, out, tmp_path, capsys):
    audio = bad_audio(kind, tmp_path)
    code = generate("--portrait", portrait, "--audio", audio, "--output", out / "x.mp4", *FAST)
    refused(capsys, code, f"{kind}.wav")
    assert not list(out.iterdir())


def test_truncated_wav_is_reported(portrait, out, tmp_path, capsys):
    audio = write_wav(tmp_path / "cut.wav", 1.0)
    audio.write_bytes(audio.read_bytes()[: 44 + 2 * 12000])
    code = generate("--portrait", portrait, "--audio", audio, "--output", out / "x.mp4", *FAST)
    error = capsys.readouterr().err
    assert code == 0
    assert re.search(r"cut\.wav.*16,?000.*12,?000", error)
    assert probe(out / "x.mp4")[0] == 19


@pytest.mark.parametrize("kind", ["missing", "text", "cut", "dot", "huge"])
def test_bad_picture(kind, portrait, speech, out, tmp_path, capsys):
    path = tmp_path / f"{kind}.png"
    if kind == "text":
        path.write_text("not a picture")
    elif kind == "cut":
        content = portrait.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif kind == "dot":
        Image.new("RGB", (1, 1)).save(path)
    elif kind == "huge":
        Image.new("1", (30000, 30000)).save(path)
    code = generate("--portrait", path, "--audio", speech, "--output", out / "x.mp4", *FAST)
    refused(capsys, code, f"{kind}.png")
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("option", "value"),
    [("--size", "30x48"), ("--size", "0x48"), ("--steps", "0"), ("--shift", "-1"), ("--fps", "0"),
     ("--color-correction", "2"), ("--seed", "-1"), ("--device", "tpu"), ("--device", "cuda:99"),
     ("--backend", "nosuch"), ("--backend", "add_norm=nosuch"), ("--backend", "nosuch=reference")],
)  # fmt: skip
def test_bad_options(option, value, portrait, speech, out, capsys):
    code = main(["generate", "--portrait", str(portrait), "--audio", str(speech), "--output",
                 str(out / "x.mp4"), option, value])  # fmt: skip
    refused(capsys, code, value if "=" not in value else "nosuch")
    assert not list(out.iterdir())


def test_unreadable_options_exit_with_2(capsys):
    for arguments in (["generate"], ["nosuch"], ["generate", "--size", "big"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["file/x.mp4", "", "x.gif"])
def test_bad_output(name, portrait, speech, out, capsys):
    (out / "file").write_text("in the way")
    before = sorted(out.rglob("*"))
    code = generate("--portrait", portrait, "--audio", speech, "--output", out / name, *FAST)
    refused(capsys, code)
    assert sorted(out.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk(portrait, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)],
        capture_output=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip("this machine permits no mount")
    try:
        audio = write_wav(tmp_path / "long.wav", 3.0)
        code = generate(
            "--portrait", portrait, "--audio", audio, "--output", disk / "x.npy",
            "--steps", 1, "--size", "64x64",
        )  # fmt: skip
        refused(capsys, code, "x.npy")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def break_checkpoint(kind: str, folder: Path) -> str:
    """Damage a sharded checkpoint; the name that the error must hold."""
    shards = sorted(folder.glob("*.safetensors"))
    if kind == "truncated shard":
        shards[1].write_bytes(shards[1].read_bytes()[:-1000])
    elif kind == "missing shard":
        shards[1].unlink()
    elif kind == "pickle with code":

        class Code:
            def __reduce__(self):
                return os.system, ("touch pwned",)

        path = folder / "Wan2.1_VAE.pth"
        path.write_bytes(pickle.dumps({"conv1.weight": Code()}))
        return path.name
    else:
        tensors = load_file(shards[0])
        key = next(key for key in tensors if key.endswith(".bias"))
        if kind == "wrong shape":
            tensors[key] = torch.zeros(3)
        elif kind == "extra key":
            tensors["blocks.0.surprise.weight"] = torch.zeros(3)
            key = "blocks.0.surprise.weight"
            index = folder / "diffusion_pytorch_model.safetensors.index.json"
            content = json.loads(index.read_text())
            content["weight_map"][key] = shards[0].name
            index.write_text(json.dumps(content))
        save_file(tensors, shards[0])
        return key
    return shards[1].name


@pytest.mark.parametrize(
    "kind", ["truncated shard", "missing shard", "wrong shape", "extra key", "pickle with code"]
)
def test_bad_checkpoint(kind, golden_checkpoint, portrait, speech, out, tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    shutil.copytree(golden_checkpoint("tiny_a_sharded"), folder)
    name = break_checkpoint(kind, folder)
    code = main(["generate", "--checkpoint", str(folder), "--audio-encoder",
                 str(golden_checkpoint("w2v_768")), "--portrait", str(portrait), "--audio",
                 str(speech), "--output", str(out / "x.mp4"), *FAST])  # fmt: skip
    refused(capsys, code, name)
    assert not list(out.iterdir()) and not Path("pwned").exists()


# Ctrl-C ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_keeps_what_is_finished(number, portrait, out, tmp_path):
    audio = write_wav(tmp_path / "long.wav", 120.0)
    video = out / "talk.mp4"
    process = subprocess.Popen(
        [sys.executable, "-m", "livetalk_model.cli.main", "generate", "--preset", "tiny",
         "--device", "cpu", "--portrait", str(portrait), "--audio", str(audio), "--output",
         str(video), *FAST],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    part = out / "talk.mp4.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 20000) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    printed, error = process.communicate(timeout=30)
    assert process.returncode == 130, error
    assert "Traceback" not in error and "stopped early" in printed
    assert [p.name for p in out.iterdir()] == ["talk.mp4"]
    frames, seconds, sound, _ = probe(video)
    assert 0 < frames < 3000
    assert abs(seconds - sound) <= 1 / 25
