"""``livetalk evaluate`` from runs of training to its reports."""

import json
import signal
import tempfile
import threading
import time
from dataclasses import replace

import pytest
import torch
from cli_tools import refused
from PIL import Image

from livetalk_model.cli.main import main
from livetalk_model.dit import DiT
from livetalk_model.evaluate.report import GROUPS, SCHEMA
from livetalk_model.own import OwnModel
from livetalk_model.train.audio.export import export_audio
from livetalk_model.train.chunks.network import Network
from livetalk_model.train.data.clips import ClipWriter, Index
from livetalk_model.train.data.synthetic import TRUTH, make_clip
from livetalk_model.train.demo import DEMO, new_audio_network, new_vae, training_ops
from livetalk_model.train.product.export import export_network, export_vae
from livetalk_model.weights.checkpoint import AUDIO_FOLDER
from livetalk_model.weights.fill import random_module

SIZE = (32, 32)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders as training leaves them, of random weights: clips, two students."""
    folder = tmp_path_factory.mktemp("evaluate")
    writer = ClipWriter(
        folder / "clips",
        Index(size=SIZE, truth=TRUTH, settings={"split": "test", "speech": "babble"}),
    )
    clip = make_clip(seed=0, split="test", index=0, seconds=2, size=SIZE, program=None)
    writer.enter(writer.store("000000.safetensors", clip))
    writer.write_index(complete=True)
    config = replace(DEMO.dit, num_layers=1, dim=64, num_heads=2, ffn_dim=64)
    own = OwnModel(size=SIZE, prompt_zeros=1, image_zeros=True)
    for seed, name in enumerate(("student", "other")):
        with torch.device("meta"):
            dit = DiT(config, training_ops())
        random_module(dit, seed=seed, dtype=torch.float32, device="cpu", key_map=dit.key_map())
        export_audio(new_audio_network(0), folder / name / AUDIO_FOLDER)
        export_vae(new_vae(0), folder / name)
        export_network(Network(dit), folder / name, own=own)
    return folder


def evaluate(runs, *extra: object) -> int:
    """Exit code of a short evaluation."""
    command = ["evaluate", "--data", runs / "clips", "--device", "cpu", "--steps", 1, *extra]
    return main([*map(str, command)])


def test_two_runs_side_by_side(runs, out, capsys):
    code = evaluate(
        runs, "--checkpoint", runs / "student", "--against", runs / "other", "--chunks", 2,
        "--streams", 1, "--twins", 1, "--output", out / "report", "--json",
    )  # fmt: skip
    assert code == 0
    printed = json.loads(capsys.readouterr().out)
    report = json.loads((out / "report.json").read_text())
    assert report["schema"] == SCHEMA and report["command"].startswith("livetalk evaluate --data")
    assert report["models"].keys() == {"this", "against"}
    assert report["models"]["against"]["runs"][0]["model"] == "other"
    for model in report["models"].values():
        (run,) = model["runs"]
        assert not run["random_weights"] and run["vae"]["clips"] == 1
        assert [s["color_correction"] for s in model["streams"]] == ["on", "off"]
        assert all(len(s["chunks"]["away"]) == 2 for s in model["streams"])
        assert len(model["streams"][0]["recoveries"]) == 4
        assert model["summary"]["on"].keys() == GROUPS.keys()
    apart = report["differences"]["off"]["mean"]["away"]
    ours, other = (m["summary"]["off"]["mean"]["away"]["mean"] for m in report["models"].values())
    assert apart["mean"] == pytest.approx(ours - other, abs=2e-3) and apart["mean"] != 0
    assert printed["models"]["this"]["summary"] == report["models"]["this"]["summary"]
    assert printed["models"]["this"]["streams"][0]["chunks"] is None
    text = (out / "report.md").read_text()
    assert "| mouth_without_loudness |" in text and "this minus against" in text
    assert "(report.png)" in text and "nan" not in text and "None" not in text
    with Image.open(out / "report.png") as picture:
        assert picture.width > 1000
    assert sorted(path.name for path in out.iterdir()) == [
        "report.json", "report.md", "report.png"
    ]  # fmt: skip


def test_without_data_it_draws_clips_and_removes_them(runs, out, tmp_path, monkeypatch):
    """The same ones for a seed, one voice per stream; and none is left, also after Ctrl-C."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    reports = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        code = main(
            ["evaluate", "--checkpoint", str(runs / "student"), "--device", "cpu", "--steps", "1",
             "--chunks", "2", "--streams", "2", "--twins", "0", "--color-correction", "on",
             "--seed", str(seed), "--output", str(out / name)]
        )  # fmt: skip
        assert code == 0
        reports.append(json.loads((out / f"{name}.json").read_text()))
    data = reports[0]["data"]
    facts = data["folder"], data["split"], data["seed"], data["size"]
    assert facts == (None, "test", 1, [32, 32])
    assert "drawn for this evaluation" in (out / "a.md").read_text()
    first, again, other = (report["models"]["this"]["streams"] for report in reports)
    assert first == again and first != other
    if data["speech"] == "espeak-ng":
        assert len({stream["voice"] for stream in first}) == 2
    assert not list(place.iterdir())

    def stop(*_: object, **__: object) -> None:
        assert list(place.iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr("livetalk_model.evaluate.evaluation.evaluate", stop)
    assert main(["evaluate", "--chunks", "1", "--streams", "1", "--output", str(out / "d")]) == 130
    assert not list(place.iterdir())


def test_one_colour_correction_alone(runs, out, capsys):
    code = evaluate(
        runs, "--checkpoint", runs / "student", "--chunks", 2, "--streams", 1, "--twins", 1,
        "--color-correction", "off", "--output", out / "report",
    )  # fmt: skip
    assert code == 0 and "contraction" in capsys.readouterr().out
    report = json.loads((out / "report.json").read_text())
    model = report["models"]["this"]
    assert [s["color_correction"] for s in model["streams"]] == ["off"]
    assert model["summary"].keys() == {"off"} and report["settings"]["color_correction"] == "off"
    rows = [row for row in (out / "report.md").read_text().splitlines() if row.startswith("|")]
    assert "| Whole streams | off | wanted | what |" in rows and not any(", on" in r for r in rows)


def test_ctrl_c_leaves_nothing(runs, out, capfd):
    def stop_soon() -> None:
        time.sleep(1.5)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=stop_soon, daemon=True).start()
    code = evaluate(runs, "--chunks", 1000, "--streams", 1, "--output", out / "report")
    assert code == 130 and "interrupted" in capfd.readouterr().err
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "{out}/none"], ["none", "livetalk dataset"]),
        (["--checkpoint", "{out}/none"], ["none"]),
        (["--checkpoint", "{runs}/vae"], ["vae"]),
        (["--against", "{out}/none"], ["none"]),
        (["--against", "{runs}/other", "{runs}/other"], ["--against", "as many"]),
        (["--audio-encoder", "{runs}/audio"], ["--audio-encoder", "--checkpoint"]),
        (["--checkpoint", "{runs}/student", "--audio-encoder", "{runs}/vae"], ["vae"]),
        (["--output", "{runs}/clips/index.json/x"], ["index.json"]),
    ],
)
def test_errors(options, words, runs, out, capsys):
    given = [word.format(out=out, runs=runs) for word in options]
    code = evaluate(runs, "--output", out / "report", "--chunks", 1, *given)
    refused(capsys, code, *words)
    assert not list(out.iterdir())
