"""A self-trained model from scratch: data, VAE, audio encoder, teacher, student, video, figures."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_tools import probe, refused, write_wav
from PIL import Image
from safetensors.torch import load_file

from livetalk_kernels.errors import UserError
from livetalk_model import bundled, load_pipeline, load_preparer
from livetalk_model.cli.main import main
from livetalk_model.color import match_color, reference_stats
from livetalk_model.config import MOTION_FRAMES, NEW_FRAMES
from livetalk_model.encoders.audio import AudioStream
from livetalk_model.evaluate.streams import make_stream
from livetalk_model.sampler import timesteps
from livetalk_model.stream.chunk import StreamOptions, to_uint8
from livetalk_model.train.chunks.flow import with_motion
from livetalk_model.train.chunks.network import Conditions
from livetalk_model.train.chunks.rollout import roll_out, take_step
from livetalk_model.train.chunks.tasks import STUDENT
from livetalk_model.train.data.clips import Clips
from livetalk_model.train.faces.mouth import HOP
from livetalk_model.train.loop.loop import At
from livetalk_model.train.loop.saving import last_checkpoint, load
from livetalk_model.train.loop.training import averaged, read_folder
from livetalk_model.train.product.export import DIT_FILE
from livetalk_model.train.product.packing import SUMS, pack
from livetalk_model.train.settings import Run
from livetalk_model.train.trainings import make_training
from livetalk_model.weights.manifest import verify_manifest

SIZE = (64, 80)
STEPS = {"vae": 2, "audio": 2, "teacher": 2, "distill": 6}
SETTINGS = """\
batch = 1
learning_rate = 0.001
critic_rate = 0.001
average = 0.5
save_every = 1
steps = {steps}
[distillation]
generator_every = 2
guidance = {{ text = "none" }}
"""


class Chain:
    """All runs in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for kind, steps in STEPS.items():
            (folder / f"{kind}.toml").write_text(SETTINGS.format(steps=steps))

    def words(self, kind: str, output: str = "") -> list[str]:
        """The command of a training."""
        sources = {"data": "clips"}
        if kind in ("teacher", "distill"):
            sources |= {"vae": "vae", "audio-encoder": "audio"}
        if kind == "distill":
            sources |= {"teacher": "teacher"}
        folders = sources | {"output": output or kind, "config": f"{kind}.toml"}
        options = [word for name, path in folders.items()
                   for word in (f"--{name}", str(self.folder / path))]  # fmt: skip
        chunks = ["--chunks", "2"] if kind == "distill" else []
        return ["train", kind, *options, *chunks, "--sample-every", "0"]

    def kill_in(self, kind: str, output: str, step: int) -> None:
        """Begin a training, and kill it once it has that checkpoint."""
        done = self.folder / output / f"checkpoints/step-{step:08d}/done.json"
        command = [sys.executable, "-m", "livetalk_model", *self.words(kind, output)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            end = time.monotonic() + 120
            while not done.is_file() and time.monotonic() < end and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL and done.is_file()


def make_clips(folder: Path, *options: str) -> None:
    """Run ``livetalk dataset`` for one clip, two chunks long."""
    size = "x".join(map(str, SIZE))
    command = ["dataset", "--synthetic", "1", "--seconds", "3", "--size", size, *options]
    assert main([*command, "--output", str(folder)]) == 0


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Trained to the end, and in a second folder killed in the distillation and resumed."""
    made = Chain(tmp_path_factory.mktemp("chain"))
    make_clips(made.folder / "clips")
    for kind in STEPS:
        assert main(made.words(kind)) == 0
    return made


def test_generate_needs_the_run_alone(chain, portrait, tmp_path, capsys):
    run, output = chain.folder / "distill", tmp_path / "talk.mp4"
    away = tmp_path / "elsewhere/run"  # it is whole by itself
    shutil.copytree(run, away, ignore=shutil.ignore_patterns("checkpoints", "samples"))
    speech = write_wav(tmp_path / "speech.wav", 1.0)
    command = ["generate", "--checkpoint", str(away), "--portrait", str(portrait)]
    command += ["--audio", str(speech), "--output", str(output), "--device", "cpu"]
    assert main([*command, "--prompt", "A king"]) == 0
    printed = capsys.readouterr()
    assert probe(output)[0] == 25 and probe(output)[3] == SIZE
    assert "weights are random" not in printed.out
    assert "warning: the model was trained without prompts" in printed.err
    pipeline = load_pipeline(checkpoint=run, device="cpu")
    assert pipeline.preparer.size == SIZE and not pipeline.random
    avatar = pipeline.prepare(portrait)
    assert not avatar.context.any() and avatar.context.shape == (1, 16)
    assert not avatar.clip_fea.any() and avatar.prompt == ""


@torch.no_grad()
def test_the_exported_student_streams_what_the_trainer_rolls_out(chain):
    """Three chunks of frames: longer than it was trained, from the files and from a checkpoint."""
    chunks, folder, options = 3, chain.folder / "distill", StreamOptions(seed=11)
    about, run = read_folder(folder)
    training = make_training(about, run, Clips(about.data))
    load(training.state, last_checkpoint(folder))
    batch = training.data.batch(At(step=0, micro=0, samples=[0]))
    pipeline = load_pipeline(checkpoint=folder, device="cpu", dtype="float32")
    pixels = ((batch["picture"][0, :, 0] + 1) * 127.5).round().to(torch.uint8)
    avatar = pipeline.prepare(Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()))
    portrait = avatar.condition[None]  # the trainer's own is encoded in bf16 on some CPUs
    assert (portrait - batch["portrait"]).norm() < 0.02 * portrait.norm()
    samples = NEW_FRAMES * HOP
    wave = np.sin(np.arange(chunks * samples) / 9).astype(np.float32) * np.hanning(chunks * samples)
    streamed = np.stack([made.frames for made in make_stream(pipeline, avatar, wave, options)])

    heard = AudioStream(pipeline.audio_encoder)
    given = [
        Conditions(portrait=portrait, text=batch["text"], image=batch["image"],
                   windows=heard.push(part)[None])
        for part in np.split(wave, chunks)
    ]  # fmt: skip
    with averaged(training.state, STUDENT) as student:
        student.products = torch.float32  # as the stream's; some CPUs train in bf16
        for count in range(1, chunks + 1):
            generator = torch.Generator().manual_seed(options.seed)
            at = roll_out(
                student, given[:count], portrait[:, :, :1], schedule=timesteps(4, options.shift),
                exit_step=3, hand_over=lambda latents: training.task.hand_over(latents, batch),
                draw_noise=lambda chunk, draw, first, generator=generator: torch.randn(
                    portrait.shape, generator=generator
                ),
            )  # fmt: skip
            latents = with_motion(take_step(student, at), at.motion)
            video = pipeline.vae.decode(latents)[:, :, MOTION_FRAMES:].clamp(-1, 1)
            video = match_color(video, reference_stats(batch["picture"]), options.color_correction)
            frames = to_uint8(video[0]).numpy()
            away = np.abs(frames.astype(int) - streamed[count - 1])
            # Truncation to uint8 shows where they round differently.
            assert away.max() <= 1 and away.mean() < 1e-3, (count, away.max(), away.mean())
    assert min(np.abs(np.diff(streamed.astype(int), axis=0)).mean(axis=(1, 2, 3, 4))) > 1


def test_the_student_is_judged_by_clips_that_no_training_takes(chain, tmp_path, capsys):
    held_out, report = tmp_path / "held-out", tmp_path / "report"
    make_clips(held_out, "--split", "test")
    words = [*chain.words("vae", "judged"), "--data", str(held_out)]
    capsys.readouterr()
    refused(capsys, main(words), str(held_out), "'livetalk evaluate' judges")
    command = ["evaluate", "--checkpoint", str(chain.folder / "distill"), "--data", str(held_out)]
    command += ["--chunks", "2", "--streams", "1", "--twins", "1", "--color-correction", "on"]
    assert main([*command, "--device", "cpu", "--output", str(report)]) == 0
    (run,) = (model := json.loads(report.with_suffix(".json").read_text())["models"]["this"])[
        "runs"
    ]
    assert run["model"] == "distill" and not run["random_weights"]
    (stream,) = model["streams"]
    assert len(stream["chunks"]["away"]) == 2 and len(stream["recoveries"]) > 0


def test_the_past_is_chosen_by_options(chain):
    assert main([*chain.words("distill", "oracle"), "--history", "oracle", "--steps", "1"]) == 0
    for name, history in (("distill", "generated"), ("oracle", "oracle")):
        method = Run.read(chain.folder / name / "run.toml").distillation
        assert (method.chunks, method.history) == (2, history)


@pytest.mark.parametrize(("usual", "warned"), [(90.0, True), (0.0, False)])
def test_a_strange_portrait_is_reported(usual, warned, chain, portrait, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(chain.folder / "distill", folder, ignore=shutil.ignore_patterns("checkpoints"))
    config = json.loads((folder / "config.json").read_text())
    assert 0 < config["livetalk"]["portrait_db"] < 60
    config["livetalk"]["portrait_db"] = usual
    (folder / "config.json").write_text(json.dumps(config))
    warnings = load_preparer(checkpoint=folder, device="cpu").prepare(portrait).warnings
    assert [("unlike those" in text) for text in warnings] == [True] * warned


def test_doctor_misses_nothing(chain, capsys):
    assert main(["doctor", "--checkpoint", str(chain.folder / "distill"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["checkpoint"]
    states = {part["name"]: part["status"] for part in report["components"]}
    assert report["complete"] and report["can_prepare"]
    assert states == dict.fromkeys(("DiT", "VAE", "audio encoder"), "found") | dict.fromkeys(
        ("text encoder", "tokenizer", "image encoder"), "not needed"
    )


def test_a_killed_distillation_continues_bit_for_bit(chain):
    chain.kill_in("distill", "killed", 2)
    assert not (chain.folder / "killed" / DIT_FILE).exists()
    resume = ["train", "distill", "--output", str(chain.folder / "killed"), "--resume"]
    assert main([*resume, "--sample-every", "0"]) == 0
    whole, resumed = (load_file(chain.folder / name / DIT_FILE) for name in ("distill", "killed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    taught = load_file(chain.folder / "teacher" / DIT_FILE)
    assert any(not torch.equal(value, whole[key]) for key, value in taught.items())


@pytest.mark.parametrize(
    ("kind", "words"),
    [("vae", ["no model yet", "livetalk train distill"]), ("old", ["picture size", "--resume"])],
)
def test_other_runs_are_refused(kind, words, chain, portrait, tmp_path, capsys):
    """A run of a part alone, and one from before the size stood in ``config.json``."""
    folder = chain.folder / kind
    if kind == "old":
        shutil.copytree(chain.folder / "distill", folder)
        config = json.loads((folder / "config.json").read_text())
        del config["livetalk"]
        (folder / "config.json").write_text(json.dumps(config))
    speech = write_wav(tmp_path / "speech.wav", 1.0)
    command = ["generate", "--checkpoint", str(folder), "--portrait", str(portrait)]
    command += ["--audio", str(speech), "--output", str(tmp_path / "x.mp4")]
    refused(capsys, main(command), str(folder), *words)
    if kind == "old":  # and the cure cures
        resume = ["train", "distill", "--output", str(folder), "--resume", "--sample-every", "0"]
        assert main(resume) == 0 and main([*command, "--device", "cpu"]) == 0


def test_packed_weights_are_the_demo(chain, tmp_path, monkeypatch):
    """Half the bytes, whole by themselves, and what the preset loads."""
    target = tmp_path / "demo"
    with pytest.raises(UserError, match="1000 at most"):
        pack(chain.folder / "distill", target, most_bytes=1000)
    assert not list(tmp_path.iterdir())
    (tmp_path / "drift.json").write_text('{"mouth": 0.8}')
    packed = pack(chain.folder / "distill", target, evaluation=tmp_path / "drift.json")
    assert sum(packed.bytes.values()) < 12_000_000 and max(packed.lost.values()) < 2**-11
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "drift.json"]
    states = verify_manifest(target / SUMS, {"checkpoint": target}, lambda name, count: None)
    assert set(states.values()) == {"ok"} and len(states) == len(packed.bytes) - 1
    card, log = (target / "README.md").read_text(), (target / "training.jsonl").read_text()
    assert "1 drawn clips" in card and "| distill | 6 |" in card and "64 x 80" in card
    assert [json.loads(line)["training"] for line in log.splitlines()].count("distill") == 7
    whole, half = (load_file(folder / DIT_FILE) for folder in (chain.folder / "distill", target))
    assert all(torch.equal(value.half(), half[key]) for key, value in whole.items())

    pack(chain.folder / "teacher", tmp_path / "taught", note="StudentTurn alone.")
    card = (tmp_path / "taught/README.md").read_text()
    assert "| teacher | 2 |" in card and "distill" not in card and "StudentTurn alone." in card
    with pytest.raises(UserError, match="no model yet"):
        pack(chain.folder / "vae", tmp_path / "taught")

    monkeypatch.setattr(bundled, "_FOLDER", tmp_path)
    demo = load_pipeline(preset="demo", device="cpu")
    assert demo.preparer.size == SIZE and not demo.random
    assert demo.dit.config.text_dim == 16
    assert torch.equal(demo.dit.get_parameter("head.head.bias"), half["head.head.bias"].float())
