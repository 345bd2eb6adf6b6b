"""``livetalk generate`` and ``livetalk prepare`` as a user runs them."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from cli_tools import FAST, RATE, generate, prepare, probe, refused, write_wav
from PIL import Image
from safetensors.torch import load_file, save_file

from livetalk_kernels.testing.trace import overlap_seconds, trace_problems
from livetalk_model.cli import common
from livetalk_model.cli.main import main
from livetalk_model.encoders import conditions

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
    for word in (
        "random",
        "start-up",
        "chunk p50",
        "p95",
        "denoise",
        "frames/s",
        "underrun",
        "peak",
    ):
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


@pytest.mark.parametrize("preset", ["tiny", "demo"])
def test_what_takes_seconds_to_import_is_left_alone(preset, portrait, speech, out):
    """What neither random nor stored weights need; torch's compiler is part of it.

    With ``--json`` that is imported after the last frame, by torch's meta device.
    """
    unneeded = "transformers scipy pyloudnorm ftfy matplotlib sympy triton torch._dynamo"
    command = ["generate", "--preset", preset, "--device", "cpu", *FAST]
    command += ["--portrait", portrait, "--audio", speech, "--output", out / "talk.mp4"]
    code = (
        "import sys; from livetalk_model.cli.main import main\n"
        f"assert main({[str(word) for word in command]}) == 0\n"
        f"print(sorted(set({unneeded.split()}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_every_backend_gives_the_frames_of_the_reference(backend, portrait, speech, out):
    """Triton runs in its interpreter here."""
    frames = []
    for name in ("reference", backend):
        target = out / f"{name}.npy"
        code = generate(
            "--portrait", portrait, "--audio", speech, "--output", target, "--dtype", "fp32",
            "--backend", name, *FAST,
        )  # fmt: skip
        assert code == 0
        frames.append(np.load(target).astype(float))
    error = np.mean((frames[0] - frames[1]) ** 2)
    assert error == 0 or 10 * np.log10(255**2 / error) >= 60


def test_a_seed_gives_the_same_frames_again(portrait, speech, out):
    seeds = {"first.npy": 3, "again.npy": 3, "other.npy": 4}
    for name, seed in seeds.items():
        options = ("--portrait", portrait, "--audio", speech, "--seed", seed)
        assert generate(*options, "--output", out / name, *FAST) == 0
    first, again, other = (np.load(out / name) for name in seeds)
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_timeline_shows_what_ran_concurrently(portrait, speech, out, capsys):
    timeline = out / "talk.json"
    code = generate("--portrait", portrait, "--audio", speech, "--output", out / "talk.mp4",
                    "--timeline", timeline, *FAST)  # fmt: skip
    assert code == 0
    assert sorted(p.name for p in out.iterdir()) == ["talk.json", "talk.mp4"]
    trace = json.loads(timeline.read_text())
    assert not trace_problems(trace)
    names = {event["name"] for event in trace["traceEvents"] if event["ph"] == "X"}
    assert names >= {"prepare", "audio encoder", "denoise", "decode", "write frames", "encode"}
    assert overlap_seconds(trace, "write frames", "decode") > 0
    facts = trace["otherData"]
    assert facts["command"][:2] == ["livetalk", "generate"] and facts["machine"]["cpu"]
    assert "commit" in facts["machine"]


def test_a_timeline_that_cannot_be_written_is_refused_at_once(portrait, speech, out, capsys):
    command = ("--portrait", portrait, "--audio", speech, "--output", out / "talk.mp4", *FAST)
    for name in ("talk.txt", out):
        refused(capsys, generate(*command, "--timeline", name), str(name))
    assert not list(out.iterdir())


def test_avatar_file_gives_the_same_video(portrait, speech, out):
    avatar = out / "me.avatar"
    assert prepare("--portrait", portrait, "--output", avatar) == 0
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


def bad_audio(kind: str, folder: Path) -> Path:
    """A sound file that is invalid."""
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
    assert "; what is missing is not heard; copy or export it again" in error


def test_json_is_all_there_is_on_stdout(portrait, out, tmp_path, capfd):
    audio = write_wav(tmp_path / "cut.wav", 1.0)
    audio.write_bytes(audio.read_bytes()[: 44 + 2 * 12000])
    target = out / "x.mp4"
    command = ("--portrait", portrait, "--audio", audio, "--output", target, "--json", *FAST)
    assert generate(*command) == 0
    printed = capfd.readouterr()
    report = json.loads(printed.out, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    (warning,) = report["warnings"]
    assert "cut.wav" in warning and "12000" in warning
    assert f"warning: {warning}\n" in printed.err


def test_the_track_that_is_heard_is_said(portrait, out, tmp_path, capsys):
    audio = tmp_path / "two.mkv"
    with av.open(str(audio), "w") as container:
        streams = [container.add_stream("pcm_s16le", rate=RATE, layout="mono") for _ in range(2)]
        for stream, seconds in zip(streams, (0.5, 1.0), strict=True):
            silence = np.zeros((1, round(seconds * RATE)), np.float32)
            frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
            frame.sample_rate = RATE
            container.mux(stream.encode(frame))
    target = out / "x.mp4"
    command = ["--portrait", portrait, "--audio", audio, "--output", target, "--json", *FAST]
    assert generate(*command, "--track", 2) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert report["output"]["frames"] == probe(target)[0] == 25
    assert report["sound"]["track"] == {"number": 2, "of": 2, "codec": "pcm_s16le"}
    assert report["sound"]["layout"] == {"name": "mono", "channels": 1}
    assert report["sound"]["gaps"]["count"] == 0 and report["warnings"] == []
    assert printed.err.count("note: ") == 1 and "sound track 2 of 2 is heard" in printed.err
    assert generate(*command, "--track", 3) == 2
    assert "has no sound track 3; choose one of its 2" in capsys.readouterr().err


def test_making_the_avatar_is_timed(portrait, speech, out, capsys, monkeypatch):
    encode = conditions.RandomTextEncoder.encode

    def slow(self, prompt):
        time.sleep(0.5)
        return encode(self, prompt)

    monkeypatch.setattr(conditions.RandomTextEncoder, "encode", slow)
    command = ["--portrait", portrait, "--audio", speech, "--output", out / "x.npy", *FAST]
    assert generate(*command, "--json") == 0
    load = json.loads(capsys.readouterr().out)["load"]
    assert load["avatar"] > 0.5
    assert load["total"] == pytest.approx(sum(load.values()) - load["total"])
    assert generate(*command) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^ *load .* avatar \d", shown, re.MULTILINE)


def test_a_single_chunk(portrait, out, tmp_path, capsys):
    audio = write_wav(tmp_path / "word.wav", 0.5)
    generate("--portrait", portrait, "--audio", audio, "--output", out / "x.npy", *FAST)
    shown = capsys.readouterr().out
    assert " 1 chunk " in shown and "1 step," in shown and "13 frames" in shown


def test_numbers_with_nouns():
    assert [common.plural(n, "chunk") for n in (0, 1, 2)] == ["0 chunks", "1 chunk", "2 chunks"]


def test_a_prompt_of_30000_words(portrait, speech, out):
    """The text encoder reads its first 512 tokens."""
    prompt, avatar = "a wörd " * 15000, out / "me.avatar"
    assert prepare("--portrait", portrait, "--prompt", prompt, "--output", avatar) == 0
    assert len(load_file(avatar)["context"]) == 512
    video = out / "x.npy"
    assert generate("--avatar", avatar, "--audio", speech, "--output", video, "--steps", 1) == 0
    assert np.load(video).shape == (38, 32, 48, 3)


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
    [("--size", "30x48"), ("--size", "0x48"), ("--fps", "4"),
     ("--device", "tpu"), ("--device", "cuda:99"),
     ("--backend", "nosuch"), ("--backend", "add_norm=nosuch"), ("--backend", "nosuch=reference")],
)  # fmt: skip
def test_bad_options(option, value, portrait, speech, out, capsys):
    files = "--portrait", portrait, "--audio", speech, "--output", out / "x.mp4"
    code = generate(*files, option, value)
    refused(capsys, code, value if "=" not in value else "nosuch")
    assert not list(out.iterdir())


def test_a_preset_has_samples_and_a_checkpoint_has_none(golden_checkpoint, speech, out, capsys):
    video = out / "x.npy"
    assert generate("--audio", speech, "--output", video, *FAST) == 0
    assert "note: no --portrait given, this is the bundled dora.png" in capsys.readouterr().err
    assert np.load(video).shape == (38, 32, 48, 3)
    real = ["generate", "--checkpoint", str(golden_checkpoint("tiny_a")), "--output", str(video)]
    refused(capsys, main(real), "--portrait or --avatar: missing")
    refused(capsys, main([*real, "--portrait", "ada"]), "--audio: missing")


def test_unreadable_options_exit_with_2(capsys):
    for arguments in (["generate"], ["nosuch"], ["generate", "--size", "big"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


def break_checkpoint(kind: str, folder: Path) -> str:
    """Damage a sharded checkpoint; return the name that the error must contain."""
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
