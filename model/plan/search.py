"""Finds the best split: every possible mesh, grid and precision, by time and memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.mesh import Grid, Mesh, factor_pairs

from ..dry_run.memory import Model, Prediction, predict
from .dit_work import DTYPES
from .forecast import Forecast, Job, forecast
from .layout import Layout
from .machine import CpuMachine, GpuMachine

NODE = 8  # GPUs in a usual server
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What the user has fixed; None for free choice.

    Attributes:
        ulysses: Ranks that share heads.
        ring: Number of token blocks.
        grid: Slices of the picture.
        fp8: Precision of the blocks' linear layers.
    """

    ulysses: int | None = None
    ring: int | None = None
    grid: Grid | None = None
    fp8: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One way to run, and its forecast.

    Attributes:
        job: What is made.
        layout: The ranks.
        forecast: Times.
        memory: Memory of a rank; None if not predicted.
        capacity: Bytes of a GPU; None on a CPU.
    """

    job: Job
    layout: Layout
    forecast: Forecast
    memory: Prediction | None = field(default=None)
    capacity: float | None = None

    @property
    def fits(self) -> bool:
        """Whether it fits in a rank's memory, as far as predicted."""
        if self.memory is None or self.capacity is None:
            return True
        return self.memory.total <= self.capacity


def fewest_nodes(world: int) -> int | None:
    """Return the fewest nodes of at most 8 GPUs that divide evenly; None if only single GPUs do."""
    for nodes in range(1, world):
        if world % nodes == 0 and world // nodes <= NODE:
            return nodes
    return None if world > NODE else 1


def default_nodes(world: int) -> int:
    """Return `fewest_nodes`.

    Raises:
        UserError: There is no such number.
    """
    nodes = fewest_nodes(world)
    if nodes is None:
        raise UserError(
            f"--gpus {world}: does not divide into nodes of at most {NODE}; say how many --nodes"
        )
    return nodes


def candidates(job: Job, world: int, nodes: int, choice: Choice) -> Iterator[tuple[Job, Layout]]:
    """Yield everything that the runtime supports, with equally many heads on every rank.

    Raises:
        UserError: The fixed choices do not fit, in the runtime's words.
    """
    heads, per_node = job.dit.num_heads, world // max(nodes, 1)
    wanted = (choice.ulysses, choice.ring)
    if wanted == (None, None):
        meshes = [
            Mesh(ulysses=ulysses, ring=ring)
            for ulysses, ring in factor_pairs(world)
            if heads % ulysses == 0
        ]
    else:
        meshes = [
            Mesh.choose(
                world,
                heads,
                ulysses=choice.ulysses,
                ring=choice.ring,
                ranks_per_node=per_node,
            )
        ]
    chosen = Grid.choose(world, job.latent, choice.grid)
    grids = [chosen]
    if choice.grid is None:
        grids = [
            Grid(rows=rows, columns=columns)
            for rows, columns in factor_pairs(world)
            if rows <= job.latent[0] and columns <= job.latent[1]
        ]
    precisions = [False, True] if choice.fp8 is None else [choice.fp8]
    for fp8 in precisions:
        for mesh in meshes:
            for grid in grids:
                yield replace(job, fp8=fp8), Layout(mesh=mesh, grid=grid, nodes=nodes)


def search(
    job: Job,
    machine: GpuMachine | CpuMachine,
    *,
    world: int,
    nodes: int,
    choice: Choice,
    shown: int = SHOWN,
    memory: bool = True,
) -> list[Plan]:
    """Find the best plans: fitting ones first, faster ones first; one grid per mesh and precision.

    Args:
        job: What is made; its precision is chosen.
        machine: Hardware.
        world: Number of GPUs.
        nodes: Number of nodes.
        choice: What the user has fixed.
        shown: How many plans to return.
        memory: Whether to predict their memory.

    Raises:
        UserError: Nothing matches the fixed choices.
    """
    best: dict[tuple[Mesh, bool], Plan] = {}
    capacity = machine.gpu.memory.value if isinstance(machine, GpuMachine) else None
    for wanted, layout in candidates(job, world, nodes, choice):
        plan = Plan(
            job=wanted,
            layout=layout,
            forecast=forecast(wanted, layout, machine),
            capacity=capacity,
        )
        key = layout.mesh, wanted.fp8
        if key not in best or plan.forecast.chunk < best[key].forecast.chunk:
            best[key] = plan
    ordered = sorted(best.values(), key=lambda plan: plan.forecast.chunk)
    if not memory:
        return ordered[:shown]
    device = "cpu" if isinstance(machine, CpuMachine) else "cuda"
    fitting: list[Plan] = []
    others: list[Plan] = []
    for plan in ordered:
        known = replace(plan, memory=_memory(plan, device))
        (fitting if known.fits else others).append(known)
        if len(fitting) == shown:
            break
    return (fitting + others)[:shown]


def scaling(
    job: Job, machine: GpuMachine, *, worlds: Sequence[int], choice: Choice
) -> list[Plan | None]:
    """Find the best plan for each number of GPUs; None if they do not have enough memory.

    Each number is on as few nodes as possible. More ranks need less memory each, so it is predicted
    only until it suffices.
    """
    found: list[Plan | None] = []
    enough = False
    for world in worlds:
        (plan,) = search(
            job,
            machine,
            world=world,
            nodes=default_nodes(world),
            choice=choice,
            shown=1,
            memory=not enough,
        )
        enough = enough or plan.fits
        found.append(plan if enough else None)
    return found


def _memory(plan: Plan, device: str) -> Prediction | None:
    """Predict a rank's memory; None for splits that the prediction does not cover."""
    job, mesh = plan.job, plan.layout.mesh
    if job.dit.num_heads % mesh.ulysses or mesh.world > job.latent[0]:
        return None
    return _predict(
        Model(
            dit=job.dit,
            vae=job.vae,
            audio=job.encoder,
            size=job.size,
            device=device,
            dtype=DTYPES[job.itemsize],
            fp8=job.fp8,
            fuse_bias=job.schedule.fuse_bias,
            steps=job.steps,
            mesh=mesh,
            grid=plan.layout.grid,
        )
    )


_predict = cache(predict)
