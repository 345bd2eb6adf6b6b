"""``livetalk dataset``: clips, whatever ends the run."""

import json
from pathlib import Path

import pytest
from cli_tools import refused

from livetalk_model.cli.main import main
from livetalk_model.train.data import synthetic, voices
from livetalk_model.train.data.clips import Clips
from livetalk_model.train.data.synthetic import TRUTH, make_clip

FAST = ["--size", "32x32", "--seconds", "3"]


@pytest.fixture(autouse=True)
def no_espeak(monkeypatch: pytest.MonkeyPatch) -> None:
    """The speech of our own is quicker, and everywhere."""
    monkeypatch.setattr(voices, "find_program", lambda: None)


def dataset(folder: Path, *extra: object) -> int:
    return main(["dataset", "--output", str(folder), *FAST, *map(str, extra)])


def test_clips_and_what_is_said_of_them(out, capsys):
    assert dataset(out / "clips", "--synthetic", 2, "--json") == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert (result["clips"], result["made"], result["frames"]) == (2, 2, 150)
    assert result["settings"]["speech"] == "babble" and result["size"] == [32, 32]
    assert "note: espeak-ng is not installed" in printed.err
    assert "apt-get install espeak-ng" in printed.err
    clips = Clips(out / "clips")
    assert len(clips) == 2 and clips.index.complete and clips.index.truth == TRUTH
    assert clips.frames(0).shape == (75, 32, 32, 3)


def test_more_clips_are_added_and_those_there_are_kept(out, capsys):
    folder = out / "clips"
    assert dataset(folder, "--synthetic", 1) == 0
    before = (folder / "000000.safetensors").stat().st_mtime_ns
    assert dataset(folder, "--synthetic", 2) == 0
    assert "2 clips, 6 s, 32x32" in capsys.readouterr().out.splitlines()[-1]
    assert (folder / "000000.safetensors").stat().st_mtime_ns == before


def test_ctrl_c_leaves_whole_clips_and_the_rest_are_the_same(out, capsys, monkeypatch):
    assert dataset(out / "whole", "--synthetic", 3) == 0

    def stopped(*, index: int, **given: object) -> object:
        if index == 2:
            raise KeyboardInterrupt
        return make_clip(index=index, **given)

    with monkeypatch.context() as patch:
        patch.setattr(synthetic, "make_clip", stopped)
        assert dataset(out / "parts", "--synthetic", 3) == 130
    assert "2 clips so far; the same command resumes" in capsys.readouterr().err
    left = Clips(out / "parts")
    assert len(left) == 2 and not left.index.complete
    assert dataset(out / "parts", "--synthetic", 3) == 0
    files = sorted(path.name for path in (out / "whole").iterdir())
    assert files == sorted(path.name for path in (out / "parts").iterdir())
    for name in files:
        assert (out / "parts" / name).read_bytes() == (out / "whole" / name).read_bytes()


def test_a_run_that_made_nothing_leaves_nothing(out, monkeypatch):
    def stopped(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "make_clip", stopped)
    assert dataset(out / "clips", "--synthetic", 3) == 130
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--synthetic", "1", "--size", "30x32"], "must be a multiple of 16"),
        (["--synthetic", "1", "--size", "1024x1024", "--seconds", "100"], "choose fewer --seconds"),
        (["--synthetic", "1", "--crop", "top"], "--crop top: goes with --videos"),
        (["--videos", "none"], "none: no such folder"),
        (["--videos", ".", "--seed", "1"], "--seed 1: goes with --synthetic"),
        (["--videos", ".", "--split", "test"], "--split test: goes with --synthetic"),
        (["--videos", ".", "--crop", "left"], "is not top, centre or x,y,w,h"),
        (["--synthetic", "100000", "--size", "512x512", "--seconds", "20"], "are free there"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(options, said, out, capsys):
    code = dataset(out / "clips", *options)
    refused(capsys, code, said)
    assert not list(out.iterdir())


def test_other_settings_need_another_folder(out, capsys):
    assert dataset(out, "--synthetic", 1) == 0
    capsys.readouterr()
    code = dataset(out, "--synthetic", 1, "--seed", 5, "--split", "test")
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and "another seed, split (0, train, not 5, test)" in error


def test_videos_with_and_without_sound(tmp_path, out, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    make = ["generate", "--preset", "tiny", "--device", "cpu", "--steps", "1", "--size", "32x32"]
    portrait, speech = "model/samples/ada.png", "model/samples/speech.wav"
    repository = Path(__file__).resolve().parents[2]
    sources = ["--portrait", repository / portrait, "--audio", repository / speech]
    talk = folder / "talk.mp4"
    assert main([*make, *map(str, sources), "--crop", "centre", "--output", str(talk)]) == 0
    (folder / "mute.mp4").write_bytes(b"no video at all")
    capsys.readouterr()
    # What random weights draw flickers, so all of it has a moving background.
    assert dataset(out / "clips", "--videos", folder) == 2
    said = capsys.readouterr().err
    assert "mute.mp4" in said and "left out" in said and "the background moves by" in said
    assert "no clip could be made" in said.splitlines()[-1]
    assert not list(out.iterdir())
