"""Shared-out trainings are those of one process, and end when a rank is lost."""

import pytest
import torch
from train_ranks import (
    alone,
    copied,
    distill,
    in_bf16,
    read_share,
    share_of,
    taught,
    teach,
    teach_in_two,
    teacher_state,
    whole,
)
from train_runs import same
from train_samples import CONFIG, random_conditions, small_network, training_ops

from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.comm import LocalCommunicator
from livetalk_kernels.testing.processes import run_ranks
from livetalk_model.dit import DiT
from livetalk_model.train.chunks.network import Network, load_network
from livetalk_model.train.loop.place import Place
from livetalk_model.train.loop.saving import last_checkpoint, load
from livetalk_model.train.loop.shards import make_mesh
from livetalk_model.train.product.export import export_network
from livetalk_model.weights.checkpoint import CheckpointFolder


def close(one, other) -> bool:
    assert one.keys() == other.keys()
    far = {
        key: float((value - other[key]).abs().max())
        for key, value in one.items()
        if not torch.allclose(value, other[key], rtol=1e-4, atol=1e-5)
    }
    assert not far, far
    return True


@pytest.mark.parametrize(("ranks", "copies", "batch"), [(2, 1, 4), (2, 2, 4), (4, 2, 8)])
def test_ranks_are_one_process_with_other_chunks_every_time(ranks, copies, batch, tmp_path):
    expected, lines = alone(distill, str(tmp_path / "one"), 1, 4, 2, batch)
    chunks = [line["student chunk"] for line in lines if "student chunk" in line]
    assert len(set(chunks)) > 1, "the test is to see several numbers of chunks"
    before = whole_of_nothing()
    assert max(float((expected[key] - value).abs().max()) for key, value in before.items()) > 1e-3
    (found, its), *others = run_ranks(distill, ranks, str(tmp_path / "ranks"), copies, 4, 2, batch)
    assert all(same(found, other) for other, _ in others) and close(found, expected)
    for line, its_line in zip(lines, its, strict=True):
        assert line.keys() == its_line.keys()
        for key in line.keys() - {"seconds"}:
            assert its_line[key] == pytest.approx(line[key], rel=1e-3, abs=1e-6), key


def test_metrics_continue_as_if_nothing_had_been(tmp_path):
    """The second look at the critic, at the tenth update, compares with the first, at the fifth."""
    folders = [str(tmp_path / name) for name in ("straight", "parts", "ranks")]
    _, straight = alone(distill, folders[0], 1, 10, 1)
    alone(distill, folders[1], 1, 6, 1)
    _, resumed = alone(distill, folders[1], 1, 10, 1)
    run_ranks(distill, 2, folders[2], 1, 6, 1)
    _, moved = alone(distill, folders[2], 1, 10, 1)
    assert "student lag" in straight[-1]
    for line, its, other in zip(straight, resumed, moved, strict=True):
        assert line | {"seconds": 0} == its | {"seconds": 0}
        assert line.keys() == other.keys()
        for key in line.keys() - {"seconds"}:
            assert other[key] == pytest.approx(line[key], rel=1e-2, abs=1e-5), key


def whole_of_nothing():
    network = small_network(seed=6)
    return {f"student {key}": value for key, value in network.state_dict().items()}


def test_two_ranks_continue_and_so_does_one(tmp_path):
    (half, again, straight), _ = run_ranks(teach_in_two, 2, str(tmp_path))
    assert same(again, straight)
    state = teacher_state(LocalCommunicator(), seed=8)
    checkpoint = last_checkpoint(tmp_path / "parts")
    assert len(list(checkpoint.glob("part-*"))) == 2
    load(state, checkpoint)
    assert state.step == 2 and same(whole(state), half)
    teach(LocalCommunicator(), state, tmp_path / "alone")
    moved = whole(state)
    for key, value in moved.items():  # Adam makes much of the last bits of small gradients
        assert torch.allclose(value, straight[key], rtol=1e-2, atol=1e-3), key


@pytest.mark.parametrize("copies", [1, 2])
def test_two_ranks_make_matrices_orthogonal_as_one_does(copies, tmp_path):
    found, _ = run_ranks(taught, 2, str(tmp_path / "two"), "muon", copies)
    expected = alone(taught, str(tmp_path / "one"), "muon")
    one, two = (  # Adam, which has the rest, makes much of the last bits of small gradients
        {key: value for key, value in made.items() if value.ndim > 1} for made in (expected, found)
    )
    assert sum("momentum" in key for key in found) > 10 and close(two, one)


def test_networks_that_all_ranks_have_whole_learn_from_all_samples(tmp_path):
    found, other = run_ranks(copied, 2, str(tmp_path / "two"))
    assert same(found, other) and close(found, alone(copied, str(tmp_path / "one")))


def test_blocks_that_run_again_give_the_same_gradients():
    one = small_network()
    with torch.device("meta"):
        dit = DiT(CONFIG, training_ops(), checkpointed=True)
    dit.load_state_dict(one.dit.state_dict(), assign=True)
    two, kept = Network(dit).requires_grad_(), []
    given, x = random_conditions(2), torch.randn(2, 16, 9, 4, 4)
    for network in (one, two):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor, sizes=sizes: (sizes.append(tensor.numel()), tensor)[1], lambda t: t
        ):
            loss = network(x, torch.tensor([900.0, 300.0]), given).square().mean()
        loss.backward()
        kept.append(sum(sizes))
    assert kept[1] < 0.5 * kept[0]
    others = dict(two.named_parameters())
    assert all(torch.equal(p.grad, others[name].grad) for name, p in one.named_parameters())


def test_products_in_bf16_and_sums_in_fp32():
    found, _ = run_ranks(in_bf16, 2)
    x = torch.randn(1, 16, 9, 4, 4, generator=torch.Generator().manual_seed(1))
    made = small_network()(x, torch.tensor([500.0]), random_conditions(1)).detach()
    exact = float(made.square().mean())
    assert found["loss"] == pytest.approx(exact, rel=0.05) and found["loss"] != exact
    assert found["weights"] == 4 and found["fine"] > 0.2


def test_each_rank_reads_its_own_share(tmp_path):
    """Each has a file with NaN in the other's rows, which loading refuses where it sees it."""
    network = small_network(seed=4)
    export_network(network, tmp_path / "whole")
    for rank in range(2):
        broken = small_network(seed=4)
        with torch.no_grad():
            for parameter in broken.parameters():
                share_of(parameter, 1 - rank).fill_(torch.nan)
        export_network(broken, tmp_path / str(rank))
        with pytest.raises(UserError, match="holds nan"):
            load_network(CheckpointFolder(tmp_path / str(rank)), CONFIG, Place())
    x = torch.randn(1, 16, 9, 4, 4, generator=torch.Generator().manual_seed(1))
    expected = network(x, torch.tensor([500.0]), random_conditions(1)).detach()
    for loaded, drawn, made in run_ranks(read_share, 2, str(tmp_path), str(tmp_path / "whole")):
        assert loaded and drawn
        assert (made - expected).norm() < 0.02 * expected.norm()  # bf16, where the CPU has it


def test_copies_divide_the_ranks():
    with pytest.raises(UserError, match="does not divide 8 ranks"):
        make_mesh(torch.device("cpu"), 8, copies=3)
