"""The VAE's training: what it sees and when, that it learns, resumes, and is used as it was."""

from pathlib import Path

import pytest
import torch
from train_clips import make_clips
from train_runs import everything, same, whole
from train_samples import small_vae

from livetalk_model.train.data.clips import Clips
from livetalk_model.train.loop.loop import At, train
from livetalk_model.train.loop.saving import State, last_checkpoint, load
from livetalk_model.train.settings import Run
from livetalk_model.train.vae import task as vae_task
from livetalk_model.train.vae.picture_losses import FEATURES, contrast_loss, face_weight, vae_loss
from livetalk_model.train.vae.task import (
    LONG,
    MIDDLE,
    SHORT,
    VaeData,
    VaeTask,
    fold_statistics,
    piece_size,
    vae_training,
)
from livetalk_model.train.vae.whole import NO_BLOCKS


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Clips:
    return make_clips(tmp_path_factory.mktemp("vae") / "clips")


def small_run(steps: int = 6, **settings) -> Run:
    return Run(**{"steps": steps, "batch": 1, "learning_rate": 3e-3, "average": 0.9} | settings)


def test_pieces_come_first_and_long_windows_are_many_later_on(tmp_path):
    """And whole pictures in the later part."""
    clips = make_clips(tmp_path / "clips", size=(64, 80))
    run = small_run(300)
    data, late = VaeData(clips, run), round(vae_task.LATE * run.steps)
    shapes = [tuple(data.batch(whole(run, step))["video"].shape[2:]) for step in range(run.steps)]
    assert set(shapes[:late]) == {(SHORT, 64, 80), (MIDDLE, 32, 48), (LONG, 32, 32)}
    assert set(shapes[late:]) == {(SHORT, 64, 80), (MIDDLE, 64, 80), (LONG, 64, 80)}
    assert sum(shape[0] == LONG for shape in shapes[late:]) > 0.4 * (run.steps - late)
    assert piece_size((96, 96), LONG) == (48, 48) and piece_size((16, 256), LONG) == (16, 128)


def test_contrast_is_missed_where_pictures_are_soft():
    """Not where they are as sharp, at another place."""
    stripes = (torch.arange(32) // 2 % 2 * 2.0 - 1).expand(1, 3, 2, 16, 32)
    soft, weight = 0.5 * stripes, torch.ones(1, 2, 16, 32)
    assert contrast_loss(stripes, stripes, weight) == 0
    missed = contrast_loss(soft, stripes, weight)
    assert missed > 0.5 and contrast_loss(soft, stripes, 3 * weight) == pytest.approx(3 * missed)
    assert contrast_loss(stripes.roll(1, dims=4), stripes, weight) < 0.2 * missed


def test_small_pictures_are_learnt_first_and_the_encoder_rests_later_on(clips):
    task, steps = VaeTask(100), range(100)
    blocks = [task.blocks(step) for step in steps]
    assert task.rest == 43 and blocks == sorted(blocks, reverse=True)
    assert blocks[0] == NO_BLOCKS and blocks[-1] == 1
    run = small_run(100)
    training = vae_training(run, clips)
    batch, network = training.data.batch(whole(run)), training.state.networks["vae"]
    for step, learns in ((0, True), (99, False)):
        network.zero_grad(set_to_none=True)
        at = At(step=step, micro=0, samples=range(1))
        training.task.loss(training.state, "vae", batch, at)[0].backward()
        assert (network.encoder.conv1.weight.grad is not None) == learns
        assert network.decoder.conv1.weight.grad is not None


def test_batches_depend_on_their_number_alone_and_hold_grey_frames(clips):
    run = small_run(300)
    one, other = VaeData(clips, run), VaeData(clips, run)
    batches = [one.batch(whole(run, step)) for step in range(60)]
    assert all(
        torch.equal(batches[step][name], other.batch(whole(run, step))[name])
        for step in (40, 7)
        for name in ("video", "weight")
    )
    grey = [bool((batch["video"][:, :, 1:].abs() < 0.01).all()) for batch in batches]
    assert 1 <= sum(grey) <= 20


def test_the_mouth_counts_more(clips):
    """Where it is: the pixels that change most are where the weight is high."""
    index = clips.index
    weight = face_weight(clips.truth(0)[None], index.truth, index.size)[0]
    motion = clips.frames(0).float().diff(dim=0).abs().mean(dim=(0, 3))
    assert weight.min() >= 1 and 0.8 * FEATURES < weight.max() <= FEATURES
    most = motion.flatten().topk(10).indices
    assert weight.mean(0).flatten()[most].median() > 2
    assert (face_weight(torch.zeros(1, 5, 0), (), (16, 16)) == 1).all()


def test_every_part_of_the_loss_counts():
    true, weight = torch.zeros(1, 3, 3, 16, 16), torch.ones(1, 3, 16, 16)
    assert vae_loss(true, true, weight) == 0
    even = true + 0.1
    assert vae_loss(even, true, weight) == pytest.approx(0.11 + 0.1)  # pixels and coarse colour
    checks = (torch.arange(16)[:, None] + torch.arange(16)) % 2 * 2 - 1
    assert vae_loss(true + 0.1 * checks, true, weight) == pytest.approx(0.11 + 0.5 * 0.4)
    flicker = even * torch.tensor([1.0, -1.0, 1.0]).view(1, 1, 3, 1, 1)
    assert vae_loss(flicker, true, weight) == pytest.approx(0.11 + 0.1 + 0.5 * 0.2)
    assert vae_loss(even, true, 2 * weight) == pytest.approx(0.22 + 0.1)


def test_an_encoder_that_rests_is_its_average(clips):
    run = small_run(100)
    training = vae_training(run, clips)
    state, batch = training.state, training.data.batch(whole(run, 43))
    average, network = state.averages["vae"].weights, state.networks["vae"]
    for value in average.values():
        value.add_(0.1)
    for step in (42, 43):
        at = At(step=step, micro=0, samples=range(1))
        training.task.loss(state, "vae", batch, at)
        for name, parameter in network.named_parameters():
            settled = step == 43 and not name.startswith(("decoder", "conv2"))
            assert torch.equal(parameter, average[name]) == settled, name


def go(run: Run, clips: Clips, folder: Path, until: int) -> tuple[State, list[float]]:
    """Begin a run, or continue it, up to an update; the losses that it had."""
    training, losses = vae_training(run, clips), []
    if (there := last_checkpoint(folder)) is not None:
        load(training.state, there)
    train(
        run, training.task, training.state, training.data, folder,
        asked=lambda: training.state.step == until,
        report=lambda progress: losses.append(progress.numbers["vae levels"]),
    )  # fmt: skip
    return training.state, losses


def test_a_few_steps_lower_the_loss(clips, tmp_path):
    _, losses = go(small_run(60, seed=1), clips, tmp_path, until=16)
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5]), losses


def test_resuming_is_bit_equal(clips, tmp_path):
    run = small_run(12)
    whole, _ = go(run, clips, tmp_path / "whole", until=4)
    go(run, clips, tmp_path / "parts", until=2)
    parts, losses = go(run, clips, tmp_path / "parts", until=4)
    assert len(losses) == 2 and same(everything(whole), everything(parts))


def test_statistics_are_folded_into_the_latents_alone():
    """The latents get mean 0 and spread 1, the pictures stay the same."""
    vae = small_vae(reuse=False)
    video = torch.randn(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    latents = vae.encode(video)
    before = vae.decode(latents, clamp=False)
    fold_statistics(vae, latents)
    after = vae.encode(video)
    spread, mean = torch.std_mean(after, dim=(0, 2, 3, 4))
    assert mean.abs().max() < 1e-4 and (spread - 1).abs().max() < 1e-4
    assert (vae.decode(after, clamp=False) - before).abs().max() < 1e-4 * before.abs().max()
    assert (latents - after).abs().max() > 0.1


def test_the_finished_vae_is_the_averaged_one(clips, monkeypatch):
    monkeypatch.setattr(vae_task, "_SAMPLES", 1)
    run = small_run()
    state = vae_training(run, clips).state
    for value in state.averages["vae"].weights.values():
        value.mul_(1.1)
    vae = vae_task.finished_vae(state, clips, run)
    name = "decoder.head.2.weight"
    assert torch.allclose(vae.get_parameter(name), 1.1 * state.networks["vae"].get_parameter(name))
    assert not any(parameter.requires_grad for parameter in vae.parameters())
