"""A training as it is asked for: from what, with which settings."""

from pathlib import Path

import pytest
from train_clips import make_clips, publish

from livetalk_kernels.errors import UserError
from livetalk_model.bundled import bundled_weights
from livetalk_model.train.demo import PAPER_STEPS, SETTINGS
from livetalk_model.train.loop.training import begin_folder
from livetalk_model.train.request import SOURCES, Request
from livetalk_model.train.settings import RESOLVED, Run

BEGINS_AS = {"teacher": "start", "distill": "teacher"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips, and a published model."""
    made = tmp_path_factory.mktemp("request")
    make_clips(made / "clips")
    publish(made / "large")
    return made


def request(folder: Path, kind: str, **asked) -> Request:
    return Request(**{"kind": kind, "output": folder / "run", "data": folder / "clips",
                      "sources": {}} | asked)  # fmt: skip


@pytest.mark.parametrize("kind", ["teacher", "distill"])
@pytest.mark.parametrize("config", [False, True])
def test_settings_are_the_recipe_of_what_it_begins_as(kind, config, folder, tmp_path):
    large, small = folder / "large", bundled_weights("demo")
    recipes = {large: Run(steps=PAPER_STEPS[kind]), small: Run(**SETTINGS[kind])}
    path = tmp_path / "mine.toml"
    path.write_text("seed = 3\n")
    for begins_as, recipe in recipes.items():
        asked = {"sources": {BEGINS_AS[kind]: begins_as}, "steps": 7}
        about, run = request(folder, kind, **asked, config=path if config else None).resolve()
        assert run == Run(**vars(recipe) | {"steps": 7, "seed": 3 if config else 0})
        assert about.sources == {BEGINS_AS[kind]: str(begins_as)}


def test_a_resumed_run_has_its_own_settings_and_replaces_what_has_moved(folder, tmp_path):
    sources = {"vae": Path("old"), "teacher": folder / "large"}
    new = request(folder, "distill", sources=sources, chunks=3, history="oracle")
    about, run = new.resolve()
    assert (run.distillation.chunks, run.distillation.history) == (3, "oracle")
    assert run.distillation.guidance == Run(steps=1).distillation.guidance
    begin_folder(tmp_path / "run", about)
    run.write(tmp_path / "run" / RESOLVED)
    asked = {"output": tmp_path / "run", "data": None, "resume": True}
    again = request(folder, "distill", sources={"vae": Path("new")}, **asked).resolve()
    assert again[0].sources == {**about.sources, "vae": "new"} and again[0].data == about.data
    assert again[1] == run
    with pytest.raises(UserError, match="a run of 'train distill'; resume it as that"):
        request(folder, "teacher", **asked).resolve()


@pytest.mark.parametrize("kind", SOURCES)
def test_what_a_training_does_not_build_on_is_refused(kind, folder):
    every = {name for names in SOURCES.values() for name in names}
    for name in every - set(SOURCES[kind]):
        with pytest.raises(UserError, match=f"--{name.replace('_', '-')} x: is for 'train"):
            request(folder, kind, sources={name: Path("x")}).resolve()
