"""Trainings of a small transformer, on one rank or several."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from train_runs import everything, go, small_run, small_state
from train_samples import CONFIG, SIZE, random_conditions, small_network

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_kernels.runtime.comm import Communicator, LocalCommunicator
from livetalk_model.config import CHUNK_FRAMES
from livetalk_model.sampler import timesteps
from livetalk_model.train.chunks.distill import Setup
from livetalk_model.train.chunks.network import Network, load_network, random_network
from livetalk_model.train.chunks.tasks import CRITIC, STUDENT, TEACHER, DistillTask, TeacherTask
from livetalk_model.train.config import Distillation, Guidance, Teaching
from livetalk_model.train.demo import CPU
from livetalk_model.train.draws import Draws
from livetalk_model.train.loop.loop import At, train
from livetalk_model.train.loop.muon import Muon
from livetalk_model.train.loop.place import Place
from livetalk_model.train.loop.records import read_records
from livetalk_model.train.loop.saving import State, last_checkpoint, load
from livetalk_model.train.loop.shards import make_mesh, share_out
from livetalk_model.train.loop.update import Average
from livetalk_model.train.settings import Run
from livetalk_model.weights.checkpoint import CheckpointFolder

SCHEDULE = timesteps(4, 5.0)
CHUNKS = 3
METHOD = Distillation(chunks=CHUNKS, generator_every=2, guidance=Guidance(audio=2.0, text=None))
RUN = Run(steps=4, batch=4, accumulate=2, seed=3, save_every=2, distillation=METHOD)


class Clips:
    """What a data set would give: another batch of noise for every micro-batch."""

    def __init__(self, run: Run = RUN) -> None:
        self.run = run

    def batch(self, at: At) -> Mapping[str, Tensor]:
        first = at.micro * self.run.micro_batch
        rows = [sample - first for sample in at.samples]
        return {key: value[rows] for key, value in self.whole(at.step, at.micro).items()}

    def whole(self, step: int, micro: int) -> Mapping[str, Tensor]:
        count, seed = self.run.micro_batch, 10 * step + micro
        random = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(count, *shape, generator=random)

        given = dict(vars(random_conditions(count, seed=seed)))
        window = CHUNK_FRAMES, CONFIG.audio_window, CONFIG.audio_layers, CONFIG.audio_dim
        return given | {
            "latents": draw(16, *SIZE),
            "start": draw(16, 1, *SIZE[1:]),
            "chunk windows": draw(CHUNKS, *window),
        }


class Streams(Clips):
    """The same for stage 2."""

    def whole(self, step: int, micro: int) -> Mapping[str, Tensor]:
        found = dict(super().whole(step, micro))
        return {key: value for key, value in found.items() if key != "latents"} | {
            "windows": found["chunk windows"]
        }


def place_of(comm: Communicator, copies: int = 1, **options) -> Place:
    """The ranks, with parameters shared out where there are several."""
    mesh = make_mesh(CPU, comm.size, copies=copies) if comm.size > 1 else None
    return Place(world=comm, control=comm, mesh=mesh, **options)


def settled(network: Network, place: Place) -> Network:
    """The network, where it learns."""
    place.share_out(network, network.dit.blocks, network.products)
    return network


def teacher_state(
    comm: Communicator, seed: int = 5, copies: int = 1, optimizer: str = "adamw"
) -> State:
    network = settled(small_network(seed=seed), place_of(comm, copies))
    parameters = network.parameters()
    if optimizer == "muon":
        learns: torch.optim.Optimizer = Muon(
            parameters, lr=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1
        )
    else:
        learns = torch.optim.AdamW(parameters, lr=1e-3)
    return State(
        networks={TEACHER: network},
        optimizers={TEACHER: learns},
        averages={TEACHER: Average(network, 0.9)},
    )


def teach(comm: Communicator, state: State, folder: Path, steps: int = 4, **options) -> bool:
    task = TeacherTask(teaching=Teaching(), schedule=SCHEDULE, draws=Draws(seed=RUN.seed))
    run = Run(**vars(RUN) | {"steps": steps})
    return train(run, task, state, Clips(), folder, place=place_of(comm), **options)


def distill(
    comm: Communicator,
    folder: str,
    copies: int = 1,
    steps: int = 4,
    generator_every: int = METHOD.generator_every,
    batch: int = RUN.batch,
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """Updates of stage 2, from the folder's last checkpoint on.

    Gradients as they are, since Adam would magnify their last bits.
    """
    place = place_of(comm, copies)
    networks = {name: settled(small_network(seed=6), place) for name in (STUDENT, CRITIC)}
    real = settled(small_network(seed=6).requires_grad_(False), place)
    state = State(
        networks=networks,
        optimizers={
            name: torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.5)
            for name, network in networks.items()
        },
    )
    method = replace(METHOD, generator_every=generator_every)
    setup = Setup(real=real, schedule=SCHEDULE, method=method, draws=Draws(seed=RUN.seed))
    task = DistillTask(setup=setup, hand_over=lambda latents, batch: latents[:, :, -2:])
    run = replace(RUN, steps=steps, batch=batch, save_every=100, distillation=method)
    there = last_checkpoint(Path(folder))
    if there is not None:
        load(state, there, comm)
    train(run, task, state, Streams(run), Path(folder), place=place)
    records = read_records(Path(folder, "metrics.jsonl")) if comm.rank == 0 else []
    return whole(state), records


def taught(comm: Communicator, folder: str, optimizer: str, copies: int = 1) -> dict[str, Tensor]:
    """Two updates of stage 1."""
    state = teacher_state(comm, copies=copies, optimizer=optimizer)
    teach(comm, state, Path(folder), steps=2)
    return whole(state)


def copied(comm: Communicator, folder: str) -> dict[str, Tensor]:
    """A run of networks that are not shared out."""
    state = small_state()
    go(small_run(), state, Path(folder), place=Place(world=comm, control=comm))
    return everything(state)


def teach_in_two(comm: Communicator, folder: str) -> list[dict[str, Tensor]]:
    """What two updates, two more from their checkpoint, and four at once come to."""
    states = []
    first = teacher_state(comm)
    teach(comm, first, Path(folder, "parts"), steps=2)
    states.append(whole(first))
    second = teacher_state(comm, seed=8)
    found = last_checkpoint(Path(folder, "parts"))
    assert found is not None
    load(second, found)
    teach(comm, second, Path(folder, "again"))
    states.append(whole(second))
    straight = teacher_state(comm)
    teach(comm, straight, Path(folder, "straight"))
    states.append(whole(straight))
    return states


def whole(state: State) -> dict[str, Tensor]:
    """All tensors of a state, gathered."""
    return {
        key: getattr(value, "full_tensor", lambda value=value: value)().clone()
        for key, value in everything(state).items()
    }


def alone(function: Callable, *args) -> object:
    """What a function gives on one rank."""
    return function(LocalCommunicator(), *args)


def read_share(comm: Communicator, folder: str, other: str) -> tuple[bool, bool, Tensor]:
    """Whether a rank has its rows of a file that is sound in these alone, and what all compute.

    Args:
        comm: The ranks.
        folder: Holds a folder for each rank.
        other: A folder with the whole network.
    """
    source, place = CheckpointFolder(Path(folder, str(comm.rank))), place_of(comm)
    config = source.dit_config(CONFIG.audio_layers, CONFIG.audio_dim)
    mine, drawn = load_network(source, config, place), random_network(3, config, place)
    equal = []
    for network, whole in (
        (mine, load_network(CheckpointFolder(other), config, Place())),
        (drawn, random_network(3, config, Place())),
    ):
        rows = [share_of(p, comm.rank) for p in whole.parameters()]
        kept = [p.to_local() for p in network.parameters()]
        equal.append(all(torch.equal(*pair) for pair in zip(kept, rows, strict=True)))
    x = torch.randn(1, 16, *SIZE, generator=torch.Generator().manual_seed(1))
    return *equal, mine(x, torch.tensor([500.0]), random_conditions(1)).detach()


def share_of(value: Tensor, rank: int) -> Tensor:
    """The rows that one of two ranks has; the second may have none."""
    parts = value.chunk(2)
    return parts[rank] if rank < len(parts) else value[:0]


def in_bf16(comm: Communicator) -> dict[str, float]:
    """A loss with products in bf16; bytes of a weight; gradients that bf16 cannot hold."""
    ops = bind_ops(KernelConfig(), device="cpu", dtype=torch.bfloat16, differentiable=True)
    network = small_network(ops)
    share_out(network, network.dit.blocks, make_mesh(CPU, comm.size), torch.bfloat16)
    x = torch.randn(1, 16, *SIZE, generator=torch.Generator().manual_seed(1 + comm.rank))
    loss = network(x, torch.tensor([500.0]), random_conditions(1)).square().mean()
    loss.backward()
    found = dict(network.named_parameters())
    fine = [p.grad.full_tensor() for p in found.values()]
    return {
        "loss": float(loss.detach()),
        "weights": max(p.dtype.itemsize for p in found.values()),
        "fine": sum(float((g != g.bfloat16()).float().mean()) for g in fine) / len(fine),
    }
