"""``livetalk train`` from its command line to the files that the product reads."""

import json
import signal
import threading
import time

import numpy as np
import pytest
import torch
from cli_tools import refused
from PIL import Image

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_model.cli.main import main
from livetalk_model.train.data.clips import ClipWriter, Index
from livetalk_model.train.data.synthetic import TRUTH, make_clip
from livetalk_model.train.loop.records import read_records
from livetalk_model.train.loop.saving import last_checkpoint
from livetalk_model.vae import VAE
from livetalk_model.weights.checkpoint import CheckpointFolder, read_vae_config
from livetalk_model.weights.fill import load_module, open_weights

SIZE = (32, 32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder with one clip of two seconds; next to it one to judge by, and an unfinished one."""
    folder = tmp_path_factory.mktemp("train")
    clip = make_clip(seed=0, split="train", index=0, seconds=2, size=SIZE, program=None)
    for name, split in (("clips", "train"), ("held-out", "test"), ("begun", "train")):
        writer = ClipWriter(folder / name, Index(size=SIZE, truth=TRUTH, settings={"split": split}))
        writer.enter(writer.store("000000.safetensors", clip))
        writer.write_index(complete=name != "begun")
    return folder / "clips"


def load_vae(folder):
    """The VAE of a folder, as the product loads it."""
    checkpoint = CheckpointFolder(folder)
    ops = bind_ops(KernelConfig(), device="cpu", dtype=torch.float32, differentiable=False)
    with open_weights(checkpoint.vae) as files:
        with torch.device("meta"):
            vae = VAE(read_vae_config(files), ops)
        load_module(vae, files, dtype=torch.float32, device="cpu")
    vae.prepare()
    return vae


def test_vae_from_end_to_end(clips, out, capsys):
    folder, settings = out / "vae", out / "mine.toml"
    settings.write_text("steps = 99\nbatch = 1\nlearning_rate = 0.001\naverage = 0.5\n")
    command = ["train", "vae", "--data", clips, "--output", folder, "--steps", 10, "--config",
               settings]  # fmt: skip
    assert main([*map(str, command), "--sample-every", "5", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["files"] == [str(folder / "Wan2.1_VAE.pth")]
    assert [entry["step"] for entry in read_records(folder / "metrics.jsonl")] == [*range(1, 11)]
    pictures = sorted(path.name for path in (folder / "samples").iterdir())
    assert pictures == ["step-00000005.png", "step-00000010.png"]
    with Image.open(folder / "samples" / pictures[0]) as picture:
        assert picture.size == (8 * SIZE[1], 2 * SIZE[0])
        assert np.ptp(np.asarray(picture)[: SIZE[0]]) > 100  # the truth above
    assert last_checkpoint(folder).name == "step-00000010"
    written = (folder / "run.toml").read_text()
    assert "learning_rate = 0.001\n" in written and "seed = 0\n" in written
    assert 'optimizer = "muon"\n' in written  # what the file omits is the small VAE's own
    assert load_vae(folder).encode(torch.zeros(1, 3, 5, *SIZE)).isfinite().all()
    refused(capsys, main([*map(str, command)]), "has a run", "--resume")


def test_ctrl_c_leaves_a_run_that_resumes(clips, out, capfd):
    folder = out / "vae"

    def stop_after_an_update() -> None:
        metrics = folder / "metrics.jsonl"
        while not metrics.is_file() or len(metrics.read_text().splitlines()) < 2:
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=stop_after_an_update, daemon=True).start()
    command = ["train", "vae", "--data", str(clips), "--output", str(folder)]
    assert main([*command, "--steps", "1000"]) == 130
    said = capfd.readouterr().err
    assert "stopping after this update" in said and "--resume continues" in said
    step = int(last_checkpoint(folder).name.removeprefix("step-"))
    assert step > 0
    resumed = ["train", "vae", "--output", str(folder), "--resume", "--steps", str(step + 1)]
    assert main(resumed) == 0
    assert last_checkpoint(folder).name == f"step-{step + 1:08d}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["--data", "livetalk dataset"]),
        (["--data", "{out}/none"], ["none"]),
        (["--data", "{clips}", "--config", "{out}/none.toml"], ["none.toml"]),
        (["--resume"], ["no run to continue"]),
        (["--resume", "--config", "x.toml"], ["--config x.toml"]),
        (["--data", "{clips}", "--history", "oracle"], ["--history oracle", "'train distill'"]),
        (["--data", "{clips}", "--chunks", "1"], ["--chunks 1", "'train distill'"]),
        (["--data", "{clips}", "--vae", "x"], ["--vae x", "'train teacher' and 'train distill'"]),
        (["--data", "{clips}", "--audio-encoder", "x"], ["--audio-encoder x", "drop it"]),
        (["--data", "{clips}", "--teacher", "x"], ["--teacher x: is for 'train distill'; drop"]),
        (["--data", "{clips}", "--start", "x"], ["--start x: is for 'train teacher'; drop"]),
        (["--data", "{clips}/../held-out"], ["held-out", "evaluate", "--split train"]),
        (["--data", "{clips}/../begun"], ["begun: is incomplete", "'livetalk dataset' again"]),
    ],
)
def test_errors(options, words, clips, out, capsys):
    given = [word.format(out=out, clips=clips) for word in options]
    refused(capsys, main(["train", "vae", "--output", str(out / "run"), *given]), *words)
    assert not (out / "run").exists()


def test_ranks_of_torchrun_are_counted_before_anything_is_loaded(clips, out, capsys, monkeypatch):
    of_torchrun = {"RANK": 0, "WORLD_SIZE": 4, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2,
                   "GROUP_RANK": 0, "MASTER_PORT": 29500, "TORCHELASTIC_RUN_ID": "x"}  # fmt: skip
    for name, value in of_torchrun.items():
        monkeypatch.setenv(name, str(value))
    command = ["train", "vae", "--data", str(clips), "--output", str(out / "run")]
    refused(capsys, main(command), "4 ranks cannot share a micro-batch of 1", "batch = 1")
