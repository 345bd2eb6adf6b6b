import json
import shutil
from pathlib import Path

import pytest

from livetalk_model import environment
from livetalk_model.cli.main import main


@pytest.fixture
def folder(golden_checkpoint, tmp_path) -> Path:
    copy = tmp_path / "checkpoint"
    shutil.copytree(golden_checkpoint("tiny_a"), copy)
    return copy


def test_environment(capsys):
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for word in ("python", "torch", "CUDA", "GPU", "CPU", "memory", "triton"):
        assert word in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_environment_as_json(capsys):
    assert main(["doctor", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value.keys() == {"environment", "libraries"}
    assert {"livetalk", "python", "torch", "CUDA", "CPU", "memory"} <= value["environment"].keys()
    for library in value["libraries"]:
        assert bool(library["version"]) != bool(library["problem"])


def test_absent_and_broken_libraries_say_why(monkeypatch):
    def missing(name: str) -> str:
        raise environment.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(environment.importlib.metadata, "version", missing)
    assert all("pip install '" in library.problem for library in environment.libraries())

    def fails(name: str):
        raise OSError("undefined symbol: _ZN3c10\nand more")

    monkeypatch.setattr(environment.importlib.metadata, "version", lambda name: "1.2")
    monkeypatch.setattr(environment.importlib, "import_module", fails)
    for library in environment.libraries():
        assert library.problem == "1.2 does not import: undefined symbol: _ZN3c10"
        assert library.version == ""


@pytest.mark.golden
def test_complete_checkpoint(folder, golden_checkpoint, capsys):
    command = ["doctor", "--checkpoint", str(folder), "--audio-encoder"]
    command.append(str(golden_checkpoint("w2v_768")))
    assert main(command) == 0
    shown = capsys.readouterr().out
    for word in ("DiT", "5.0 M", "VAE", "3.6 M", "audio encoder", "complete for 'generate'"):
        assert word in shown
    assert main([*command, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)["checkpoint"]
    assert value["complete"] and not value["can_prepare"]
    assert [part["name"] for part in value["components"]][:3] == ["DiT", "VAE", "audio encoder"]


@pytest.mark.golden
def test_tables_fit_80_columns(folder, capsys):
    main(["doctor", "--checkpoint", str(folder)])
    shown = capsys.readouterr().out
    lines = shown[shown.index("Checkpoint") :].splitlines()
    assert any(line.split()[:1] == ["DiT"] for line in lines)
    assert all(len(line) <= 80 for line in lines if ": " not in line)  # below: what is missing


@pytest.mark.golden
def test_broken_checkpoint(folder, capsys):
    path = folder / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert main(["doctor", "--checkpoint", str(folder)]) == 1
    shown = capsys.readouterr().out
    assert "broken" in shown and str(path) in shown and "incomplete" in shown
    path.unlink()
    assert main(["doctor", "--checkpoint", str(folder), "--json"]) == 1
    dit = json.loads(capsys.readouterr().out)["checkpoint"]["components"][0]
    assert (dit["name"], dit["status"]) == ("DiT", "missing")


def test_bad_folders(tmp_path, capsys):
    nowhere, file = tmp_path / "nowhere", tmp_path / "file"
    file.write_text("")
    for arguments in (
        ["--checkpoint", str(nowhere)],
        ["--checkpoint", str(file)],
        ["--checkpoint", str(tmp_path), "--audio-encoder", str(nowhere)],
        ["--audio-encoder", str(tmp_path)],
        ["--write-manifest", str(tmp_path / "m")],
    ):
        assert main(["doctor", *arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1
        assert printed.err.startswith("error: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.golden
def test_manifest(folder, tmp_path, capsys):
    manifest = tmp_path / "MANIFEST"
    checkpoint = ["doctor", "--checkpoint", str(folder)]
    assert main([*checkpoint, "--write-manifest", str(manifest)]) == 0
    assert "3 files" in capsys.readouterr().out
    assert main([*checkpoint, "--verify-manifest", str(manifest)]) == 0
    assert "unchanged" in capsys.readouterr().out
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b"\n")
    (folder / "Wan2.1_VAE.pth").unlink()
    assert main([*checkpoint, "--verify-manifest", str(manifest), "--json"]) == 1
    value = json.loads(capsys.readouterr().out)["manifest"]
    assert value == {
        "checkpoint/Wan2.1_VAE.pth": "missing",
        "checkpoint/config.json": "changed",
        "checkpoint/diffusion_pytorch_model.safetensors": "ok",
    }
    assert main([*checkpoint, "--verify-manifest", str(tmp_path / "none")]) == 2


def test_hashing_is_silent_without_a_terminal(tmp_path, capfd):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    main(["doctor", "--checkpoint", str(folder), "--write-manifest", str(tmp_path / "new/m")])
    printed = capfd.readouterr()
    assert printed.err == "" and f"wrote {tmp_path / 'new/m'}: 1 file\n" in printed.out
