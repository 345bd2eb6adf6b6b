"""A self-trained model from scratch: data, VAE, audio encoder, teacher, student, video."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cli_tools import probe, refused, write_wav
from safetensors.torch import load_file

from livetalk_kernels.errors import UserError
from livetalk_model import bundled, load_pipeline, load_preparer
from livetalk_model.cli.main import main
from livetalk_model.train.product.export import DIT_FILE
from livetalk_model.train.product.packing import SUMS, pack
from livetalk_model.train.settings import Run
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


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Trained to the end, and in a second folder killed in the distillation and resumed."""
    made = Chain(tmp_path_factory.mktemp("chain"))
    size = "x".join(map(str, SIZE))
    clips = ["dataset", "--synthetic", "1", "--seconds", "3", "--size", size]
    assert main([*clips, "--output", str(made.folder / "clips")]) == 0
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
