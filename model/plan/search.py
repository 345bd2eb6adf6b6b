"""Finding the best split: every mesh, grid and precision that can run, by time and memory."""

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

NODE = 8  # GPUs of a usual server
SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is fixed; None: any.

    Attributes:
        ulysses: Ranks that share heads.
        ring: Blocks of tokens.
        grid: Slices of the picture.
        fp8: Precision of the blocks' linear layers.
    """

    ulysses: int | None = None
    ring: int | None = None
    grid: Grid | None = None
    fp8: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One way to run, and what it would give.

    Attributes:
        job: What is made.
        layout: On which ranks.
        forecast: Times.
        memory: Of a rank; None where it is not predicted.
        capacity: Bytes of a GPU; None on a CPU.
    """

    job: Job
    layout: Layout
    forecast: Forecast
    memory: Prediction | None = field(default=None)
    capacity: float | None = None

    @property
    def fits(self) -> bool:
        """Whether a rank's memory holds it, as far as it is predicted."""
        if self.memory is None or self.capacity is None:
            return True
        return self.memory.total <= self.capacity


def fewest_nodes(world: int) -> int | None:
    """As few nodes of at most 8 GPUs as share them evenly; None: only one GPU each would."""
    for nodes in range(1, world):
        if world % nodes == 0 and world // nodes <= NODE:
            return nodes
    return None if world > NODE else 1


def default_nodes(world: int) -> int:
    """The same.

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
    """Everything that the runtime would run, with the same number of heads on every rank.

    Raises:
        UserError: What is fixed does not fit; as the runtime says it.
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
    """The best plans: those that fit first, the faster first; one grid for each mesh and precision.

    Args:
        job: What is made; its precision is chosen.
        machine: On what.
        world: GPUs.
        nodes: That share them.
        choice: What is fixed.
        shown: How many are wanted.
        memory: Predict the memory of those that are.

    Raises:
        UserError: Nothing fits what was fixed.
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
    """The best plan for each number of GPUs; None where the memory of one does not hold it.

    Each number is on as few nodes as hold it. A rank needs less memory the more there are, so it is
    looked at until it suffices.
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
    """Memory of a rank; None for splits that its prediction does not know."""
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
