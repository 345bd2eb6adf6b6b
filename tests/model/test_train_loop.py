"""The loop of a training: its settings, metrics and checkpoints, and how it stops."""

import json
import multiprocessing
import signal
from dataclasses import replace

import pytest
import torch
from train_runs import At, Copying, Numbers, be_killed, everything, go, same, small_run, small_state

from livetalk_kernels.errors import NumericsError, UserError
from livetalk_kernels.runtime.comm import LocalCommunicator
from livetalk_model.train.config import Distillation, Guidance, Teaching
from livetalk_model.train.demo import SETTINGS
from livetalk_model.train.loop.place import Place
from livetalk_model.train.loop.records import read_records
from livetalk_model.train.loop.saving import last_checkpoint, load
from livetalk_model.train.settings import Run

# Settings ------------------------------------------------------------------------------------


def test_settings_come_back_as_they_were_written(tmp_path):
    run = Run(
        steps=7, learning_rate=3e-7, betas=(0.5, 1.0), teaching=Teaching(anchored=0.6),
        distillation=Distillation(chunks=2, guidance=Guidance(text=None), motion_loss=True),
    )  # fmt: skip
    for settings in (run, Run(steps=1)):
        settings.write(tmp_path / "run.toml")
        assert Run.read(tmp_path / "run.toml") == settings
    text = (tmp_path / "run.toml").read_text()
    assert 'history = "generated"' in text and "[distillation.guidance]" in text


def test_settings_that_a_file_omits_are_the_given_ones(tmp_path):
    """In nested tables too."""
    path, base = tmp_path / "mine.toml", Run(**SETTINGS["distill"])
    path.write_text("batch = 2\n[distillation]\nchunks = 1\n")
    method = replace(base.distillation, chunks=1)
    assert Run.read(path, base) == replace(base, batch=2, distillation=method)
    assert base.distillation.guidance.audio == 2 and base.learning_rate == 5e-5
    path.write_text("[distillation.guidance]\naudio = 3.0")
    method = replace(base.distillation, guidance=Guidance(audio=3.0, text=None))
    assert Run.read(path, base) == replace(base, distillation=method)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n", "steps is missing"),
        ("steps = 3 3", "is not valid TOML"),
        ("steps = 3\nstep = 2", "unknown settings (step)"),
        ("steps = 3\n[distillation.guidance]\nvideo = 2", "distillation.guidance.video"),
        ("steps = 0", "steps is 0"),
        ("steps = 3\nlearning_rate = inf", "not a finite number"),
        ("steps = 3\nlearning_rate = 'x'", "not a number"),
        ("steps = 3\n[distillation]\nchunks = 0", "distillation: chunks = 0"),
        ("steps = 3\n[distillation]\nhistory = 'mine'", "not one of generated, oracle"),
        ("steps = 3\nbatch = 4\naccumulate = 3", "equal micro-batches"),
        ("steps = none", "is not valid TOML"),
        ("steps = 'none'", "steps is null"),
    ],
)
def test_settings_that_are_no_good(text, words, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        Run.read(path)
    assert str(path) in str(error.value) and words in str(error.value)


def test_a_run_continues_with_its_own_settings(tmp_path):
    run = small_run()
    run.write(tmp_path / "run.toml")
    replace(run, steps=60, save_every=1, record_every=2).check_resumed(tmp_path / "run.toml")
    with pytest.raises(UserError, match="begun with batch = 4, not 8"):
        replace(run, batch=8).check_resumed(tmp_path / "run.toml")


# Metrics -------------------------------------------------------------------------------------


def test_metrics_are_whole_lines_of_each_update(tmp_path):
    reported = []
    assert go(small_run(), small_state(), tmp_path, report=reported.append)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"livetalk_metrics": 1}
    assert [line["step"] for line in lines[1:]] == [1, 2, 3, 4, 5, 6]
    assert "student loss" not in lines[1] and lines[2]["student norm"] > 0
    assert [entry.step for entry in reported] == [1, 2, 3, 4, 5, 6]
    assert reported[-1].left == 0 and reported[0].left > 0
    assert reported[1].numbers["student loss"] == lines[2]["student loss"]
    assert reported[2].numbers["student loss"] == lines[2]["student loss"]  # it was not its turn
    assert (
        "student loss" not in lines[3]
        and reported[2].numbers["critic loss"] != reported[1].numbers["critic loss"]
    )
    assert Run.read(tmp_path / "run.toml") == small_run()


def test_a_rare_record_still_has_the_last_update(tmp_path):
    go(small_run(record_every=4), small_state(), tmp_path)
    assert [entry["step"] for entry in read_records(tmp_path / "metrics.jsonl")] == [4, 6]


def test_half_a_line_and_lines_after_the_checkpoint_go(tmp_path):
    go(small_run(steps=3), small_state(), tmp_path)
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 4, "critic loss": 1}\n{"step": 5, "cri')
    state = small_state()
    load(state, last_checkpoint(tmp_path))
    go(small_run(steps=4), state, tmp_path)
    entries = read_records(path)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4] and "seconds" in entries[3]


@pytest.mark.parametrize("text", ["hello\n", '{"livetalk_metrics": 2}\n', "[]\n", "\n"])
def test_other_files_are_not_taken_for_metrics(text, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match="not a file of metrics"):
        go(small_run(), small_state(), tmp_path)
    assert (tmp_path / "metrics.jsonl").read_text() == text


# Updates -------------------------------------------------------------------------------------


def test_accumulated_micro_batches_are_the_mean_of_their_gradients(tmp_path):
    """Against one by hand, in which the shift of each micro-batch is its own."""
    run, state, copy = small_run(steps=1), small_state(), small_state()
    go(run, state, tmp_path)
    task, data, network = Copying(run), Numbers(run), copy.networks["critic"]
    for micro in range(2):
        at = At(step=0, micro=micro, samples=range(2 * micro, 2 * micro + 2))
        (task.loss(copy, "critic", data.batch(at), at)[0] / 2).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), run.max_norm)
    copy.optimizers["critic"].step()
    assert same(everything(state), everything(copy))


def test_it_learns(tmp_path):
    run, state = small_run(steps=150, save_every=150, record_every=10), small_state()
    go(run, state, tmp_path)
    losses = [entry["critic loss"] for entry in read_records(tmp_path / "metrics.jsonl")]
    assert losses[-1] < 0.7 * losses[0]


def test_nan_stops_with_one_sentence_and_leaves_the_last_checkpoint(tmp_path):
    with pytest.raises(NumericsError) as error:
        go(small_run(), small_state(), tmp_path, wrong=4)
    assert str(error.value) == (
        "update 5: the critic's loss is NaN or Inf; the last checkpoint stands: resume with a "
        "smaller learning rate"
    )
    assert last_checkpoint(tmp_path).name == "step-00000003"


def test_ranks_that_cannot_share_a_micro_batch(tmp_path):
    comm = LocalCommunicator()
    comm.size = 4
    with pytest.raises(UserError, match="4 ranks cannot share a micro-batch of 2"):
        go(small_run(), small_state(), tmp_path, place=Place(control=comm))


# Continuing ----------------------------------------------------------------------------------


def straight(folder):
    state = small_state()
    go(small_run(), state, folder)
    return everything(state)


def test_three_and_three_are_six(tmp_path):
    go(small_run(steps=3), small_state(), tmp_path)
    state = small_state(seed=8)  # nothing of it is to remain
    load(state, last_checkpoint(tmp_path))
    assert state.step == 3 and go(small_run(), state, tmp_path)
    assert same(everything(state), straight(tmp_path / "straight"))


def test_stopping_saves_and_continues(tmp_path):
    updates = []
    state = small_state()
    run = small_run(save_every=100)
    asked = {"asked": lambda: len(updates) == 2, "report": updates.append}
    assert not go(run, state, tmp_path, **asked)
    assert last_checkpoint(tmp_path).name == "step-00000002"
    state = small_state(seed=8)
    load(state, last_checkpoint(tmp_path))
    assert go(run, state, tmp_path)
    assert same(everything(state), straight(tmp_path / "straight"))


def test_the_last_two_checkpoints_are_kept(tmp_path):
    go(small_run(save_every=1), small_state(), tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000005", "step-00000006"]


@pytest.mark.parametrize("moment", ["before the tensors", "before done.json"])
def test_a_kill_while_saving_leaves_the_last_checkpoint(moment, tmp_path):
    go(small_run(steps=3), small_state(), tmp_path)
    before = last_checkpoint(tmp_path)
    name = {"before the tensors": "write_safetensors", "before done.json": "write_json"}[moment]
    process = multiprocessing.get_context("forkserver").Process(
        target=be_killed, args=(tmp_path, name)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "checkpoints/step-00000004").is_dir()
    assert last_checkpoint(tmp_path) == before
    state = small_state(seed=8)
    load(state, before)
    go(small_run(), state, tmp_path)
    assert same(everything(state), straight(tmp_path / "straight"))
    assert not (tmp_path / "checkpoints/step-00000004").exists()  # what was left is gone


# Checkpoints that are no good ----------------------------------------------------------------


def test_a_checkpoint_of_another_network(tmp_path):
    go(small_run(steps=1), small_state(), tmp_path)
    state = small_state()
    for network in state.networks.values():
        network[0] = torch.nn.Linear(6, 5, bias=False)
    state = replace(state, averages={})
    with pytest.raises(UserError, match="another network"):
        load(state, last_checkpoint(tmp_path))


@pytest.mark.parametrize("harm", ["cut", "gone", "version", "text"])
def test_a_damaged_checkpoint(harm, tmp_path):
    go(small_run(steps=1), small_state(), tmp_path)
    path = last_checkpoint(tmp_path)
    part, done = path / "part-0-of-1.safetensors", path / "done.json"
    if harm == "cut":
        part.write_bytes(part.read_bytes()[:-9])
    elif harm == "gone":
        part.unlink()
    else:
        done.write_text({"version": '{"livetalk_checkpoint": 9}', "text": "x"}[harm])
    with pytest.raises(UserError, match="resume from the checkpoint before") as error:
        load(small_state(), path)
    assert str(path) in str(error.value)
