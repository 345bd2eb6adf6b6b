"""``livetalk train`` on several ranks, as a user starts it."""

import json
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from train_clips import make_sources

from livetalk_kernels.testing.faults import Run, run_fault
from livetalk_model.cli.main import main
from livetalk_model.train.loop.curves import CURVES
from livetalk_model.train.loop.records import METRICS, read_records
from livetalk_model.train.loop.saving import last_checkpoint
from livetalk_model.train.product.export import DIT_FILE

SETTINGS = """\
batch = 2
learning_rate = 0.0001
average = 0.5
save_every = 1
optimizer = "muon"
steps = 2
"""
METHOD = """[distillation]
chunks = 2
generator_every = 1
"""
FOREVER = "100000"
PROGRAM = sys.executable, "-m", "livetalk_model"
TORCHRUN = (
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
    "livetalk_model",
)  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher after two updates on one rank, and all that it needs."""
    folder = tmp_path_factory.mktemp("ranks")
    sources = make_sources(folder)
    (folder / "settings.toml").write_text(SETTINGS)
    words = [word for name, path in sources.items() for word in (f"--{name}", str(path))]
    command = ["train", "teacher", *words, "--config", str(folder / "settings.toml")]
    assert main([*command, "--output", str(folder / "run"), "--device", "cpu",
                 "--sample-every", "0"]) == 0  # fmt: skip
    return folder / "run"


@pytest.fixture(scope="module")
def student(begun: Path) -> Path:
    """Three updates of a distillation of that teacher, on one rank."""
    (begun.parent / "distill.toml").write_text(SETTINGS + METHOD)
    assert main(distill(begun, begun.parent / "student", 3)) == 0
    return begun.parent / "student"


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(begun, tmp_path / "run"))


def distill(begun: Path, folder: Path, steps: int) -> list[str]:
    """Words of the command that begins to distil a teacher."""
    about = json.loads((begun / "training.json").read_text())
    given = {"data": about["data"], "teacher": begun, "output": folder, "steps": steps,
             "config": begun.parent / "distill.toml",
             **{name.replace("_", "-"): at for name, at in about["sources"].items()}}  # fmt: skip
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    return ["train", "distill", *words, "--device", "cpu", "--sample-every", "0"]


def resume(folder: Path, steps: object, *options: str) -> list[str]:
    """Words of the command that continues it."""
    words = ["train", "teacher", "--output", str(folder), "--resume", "--steps", str(steps)]
    return [*words, "--device", "cpu", *options]


def on_two(folder: Path, steps: object, *options: str) -> list[str]:
    """The same in a process of its own, on two ranks."""
    return [*PROGRAM, *resume(folder, steps, "--nproc", "2"), *options]


def weights(folder: Path) -> torch.Tensor:
    """All that a run has made.

    Together, since keys' biases have no gradient but rounding, which an optimiser enlarges.
    """
    file = load_file(folder / DIT_FILE)
    return torch.cat([file[key].flatten() for key in sorted(file)])


def test_two_ranks_of_torchrun_continue_to_what_one_comes_to(run, tmp_path):
    alone = Path(shutil.copytree(run, tmp_path / "alone"))
    assert main(resume(alone, 4, "--sample-every", "0")) == 0
    more = "--recompute", "--sample-every", "2", "--json"
    with Run([*TORCHRUN, *resume(run, 4, *more)]) as started:
        assert started.seconds_to_end(400) < 400
        assert started.process.returncode == 0, started.stderr()
        made = json.loads(started.stdout())
        assert started.stderr().count("update 4 of 4") == 1
    assert made["steps"] == 4 and str(run / DIT_FILE) in made["files"]
    assert len(list(last_checkpoint(run).glob("part-*"))) == 2
    assert (run / "samples/step-00000004.png").is_file() and (run / CURVES).is_file()
    own, theirs = weights(alone), weights(run)  # the two updates move them by about 1 %
    assert (own - theirs).norm() <= 1e-3 * own.norm()
    for line, its in zip(*(read_records(at / METRICS) for at in (alone, run)), strict=True):
        assert its["teacher loss"] == pytest.approx(line["teacher loss"], rel=1e-2)


def test_two_ranks_distil_from_files_and_one_continues(begun, student, tmp_path):
    folder = tmp_path / "run"
    with Run([*PROGRAM, *distill(begun, folder, 2), "--nproc", "2"]) as started:
        assert started.seconds_to_end(400) < 400
        assert started.process.returncode == 0, started.stderr()
        assert started.stderr().count("update 2 of 2") == 1
    assert len(list(last_checkpoint(folder).glob("part-*"))) == 2
    assert main(["train", "distill", "--output", str(folder), "--resume", "--steps", "3",
                 "--device", "cpu", "--sample-every", "0"]) == 0  # fmt: skip
    whole, parts, taught = weights(student), weights(folder), weights(begun)
    # bf16 and Muon enlarge the last bits of small gradients; other samples would differ entirely.
    assert 0 < (whole - parts).norm() <= 0.3 * (whole - taught).norm()
    for line, its in zip(*(read_records(at / METRICS) for at in (student, folder)), strict=True):
        assert line.keys() == its.keys() and {"student chunk", "critic loss"} <= line.keys()
        for key in line.keys() - {"seconds"}:
            assert its[key] == pytest.approx(line[key], rel=1e-2, abs=1e-5), key


def test_ctrl_c_saves_on_two_ranks_and_one_continues(run):
    with Run(on_two(run, FOREVER, "--sample-every", "0")) as started:
        end = time.monotonic() + 300
        while len(read_records(run / METRICS)) < 4 and time.monotonic() < end:
            time.sleep(0.1)
        started.process.send_signal(signal.SIGINT)
        assert started.seconds_to_end(200) < 200
        assert started.process.returncode == 130, started.stderr()
        said = started.stderr()
    assert said.count("stopping after this update") == 1 == said.count("--resume continues")
    path = last_checkpoint(run)
    last = int(path.name[-8:])
    assert read_records(run / METRICS)[-1]["step"] == last >= 4
    assert len(list(path.glob("part-*"))) == 2
    assert main(resume(run, last + 1, "--sample-every", "0")) == 0
    assert [path.name for path in last_checkpoint(run).glob("part-*")] == [
        "part-0-of-1.safetensors"
    ]


def test_a_killed_rank_ends_the_run_and_the_last_checkpoint_stands(run):
    command = on_two(run, FOREVER, "--sample-every", "0")
    fault = run_fault(command, "update", signal.SIGKILL, 1, world=2, start=300)
    assert fault.passed, fault
    lost = f"rank 1 on {socket.gethostname()} was lost in phase update"
    errors = [line for line in fault.stderr.splitlines() if line.startswith("error:")]
    assert errors == [f"error: {lost} (killed by a signal, or crashed)"]
    step = int(last_checkpoint(run).name[-8:])
    assert step >= 2 and main(resume(run, step, "--sample-every", "0")) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nproc", "3"], ["3 ranks cannot share", "batch = 2"]),
        (["--copies", "2"], ["--copies 2", "--nproc"]),
        (["--nproc", "2", "--deadline", "denoising=3"], ["there is no phase denoising"]),
        (["--start", "{folder}/none"], ["none"]),
    ],
)
def test_what_does_not_go_is_refused_before_anything_runs(options, words, begun, tmp_path, capsys):
    sources = json.loads((begun / "training.json").read_text())
    given = {"--data": sources["data"], "--vae": sources["sources"]["vae"],
             "--audio-encoder": sources["sources"]["audio_encoder"]}  # fmt: skip
    command = ["train", "teacher", "--output", str(tmp_path / "run"), "--device", "cpu"]
    command += [word for pair in given.items() for word in pair]
    command += ["--config", str(begun.parent / "settings.toml")]
    more = [word.format(folder=tmp_path) for word in options]
    assert main([*command, *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and all(word in line for word in words)
    assert not (tmp_path / "run").exists()
