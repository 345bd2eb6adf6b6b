"""`make train-demo`: finished stages are skipped, interrupted ones resume, and all stop in time."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from livetalk_kernels.errors import UserError
from livetalk_model.train.config import Distillation, Guidance
from livetalk_model.train.demo import SETTINGS
from livetalk_model.train.estimate import DATASET, Recipe, estimate
from livetalk_model.train.settings import Run

SCRIPTS = Path(__file__).resolve().parent.parent / "benchmarks"
STANDIN = """\
import json, pathlib, signal, sys, time
words = sys.argv[1:]
name = words[1] if words[0] == "train" else words[0]
folder = pathlib.Path(words[words.index("--output") + 1])
with (folder.parent / "calls").open("a") as calls:
    print(*words, file=calls)
folder.mkdir(exist_ok=True)
made = {"vae": "Wan2.1_VAE.pth", "audio": "model.safetensors"}
if words[0] == "dataset":
    index = {"format": "livetalk clips", "version": 1, "complete": True, "size": [96, 96],
             "truth": [], "settings": {}, "clips": []}
    (folder / "index.json").write_text(json.dumps(index))
elif "/" in name:  # it is packed
    (folder / "SHA256SUMS").write_text("")
else:
    (folder / "training.json").write_text("{}")
    if "--resume" not in words:
        config = pathlib.Path(words[words.index("--config") + 1])
        (folder / "run.toml").write_text(config.read_text())
        if name == "teacher":  # takes long
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                sys.exit(130)
    (folder / made.get(name, "diffusion_pytorch_model.safetensors")).write_text("")
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script, whose commands are played by another one."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import train_demo

    standin = tmp_path / "standin.py"
    standin.write_text(STANDIN)
    monkeypatch.setattr(train_demo, "LIVETALK", (sys.executable, str(standin)))
    monkeypatch.setattr(train_demo, "PACK", standin)
    yield train_demo
    sys.modules.pop("train_demo", None)


def test_stages(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {kind: Run(**{**SETTINGS[kind], "steps": 3}) for kind in script.MADE}
    folder = tmp_path / "out"
    folder.mkdir()
    stages = script.Stages(folder, runs, clips=2)
    assert script.run_all(stages, 0.1, once=False, estimated={"teacher": 7.0}) == 0
    calls = [line.split() for line in (folder / "calls").read_text().splitlines()]
    kinds = [words[1] if words[0] == "train" else Path(words[0]).name for words in calls]
    trainings = ["vae", "audio", "teacher", "teacher", "distill", "distill"]
    assert kinds == ["dataset", *trainings]
    assert "--resume" not in calls[3] and "--resume" in calls[4]  # it was stopped after 6 s
    assert {"--vae", "--audio-encoder", "--teacher"} <= set(calls[5])
    learned = [words[words.index("--data") + 1] for words in calls if "--data" in words]
    assert learned == [str(folder / DATASET)] * 4
    entries = [json.loads(line) for line in (folder / script.RECORD).read_text().splitlines()]
    assert [entry["done"] for entry in entries] == [True] * 3 + [False] + [True] * 3
    assert entries[3]["estimated"] == 7.0 and entries[3]["seconds"] >= 6
    assert ", to be resumed" in capsys.readouterr().out

    assert script.run_all(stages, 1.0, once=False, estimated={}) == 0  # nothing is left
    assert len((folder / "calls").read_text().splitlines()) == len(calls)
    os.remove(folder / "audio/model.safetensors")
    assert script.run_all(stages, 1.0, once=True, estimated={}) == 0  # and one that was begun
    assert "--resume" in (folder / "calls").read_text().splitlines()[-1]
    other = script.Stages(folder, runs | {"vae": Run(steps=4)})
    with pytest.raises(UserError, match="begun with other settings"):
        other.done("vae")


def test_an_estimate_of_all_stages(tmp_path: Path) -> None:
    small = {"steps": 9, "batch": 1, "average": 0.5}
    method = Distillation(chunks=3, generator_every=3, guidance=Guidance(text=None))
    runs = {kind: Run(**small, distillation=method) for kind in SETTINGS}
    recipe = Recipe(clips=50, seconds=3.7, size=(32, 32), program=None, runs=runs)
    reported: dict[str, float] = {}
    found = estimate(recipe, tmp_path, places=2, report=reported.__setitem__)
    assert found == reported and list(found) == [DATASET, *SETTINGS]
    assert all(seconds > 0 for seconds in found.values())
    assert (tmp_path / "distill/config.json").is_file()
