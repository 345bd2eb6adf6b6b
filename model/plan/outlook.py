"""Answers ``livetalk plan``: a request, its plans, and what they rest on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from livetalk_kernels.errors import UserError
from livetalk_kernels.gpus import get_gpu
from livetalk_kernels.machine import commit
from livetalk_kernels.runtime.mesh import Grid

from ..config import get_preset
from .evidence import Evidence, gpu_evidence
from .figures import figures
from .fit import public_shares
from .forecast import Job
from .machine import CpuMachine, GpuMachine
from .parameters import parameters
from .plot import WORLDS, draw
from .recorded import Observed, check_one_setting, cpu_reports, fit_cpu, read_recorded
from .search import Choice, Plan, default_nodes, fewest_nodes, scaling, search
from .systems import Schedule

_PRECISIONS = {"exact": False, "fp8": True, None: None}
_ITEMSIZES = {"fp32": 4, "bf16": 2, None: 4}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be forecast: the options of ``livetalk plan``.

    None leaves the choice to the forecast.

    Attributes:
        gpu: Name of a GPU, or ``cpu``.
        gpus: GPUs in all.
        nodes: Nodes that hold them.
        size: Height and width in pixels.
        precision: ``exact`` or ``fp8``.
        preset: Of the model.
        dtype: ``bf16`` or ``fp32``.
        steps: Denoising steps of a chunk.
        cuda_graphs: Steps are replayed.
        fuse_bias: See `VAE`.
        ulysses: Ranks that share heads.
        ring: Blocks of tokens.
        vae_grid: Rows x columns of slices.
        fit: Reports, or folders of them, to fit to.
    """

    gpu: str
    gpus: int | None = None
    nodes: int | None = None
    size: tuple[int, int] | None = None
    precision: str | None = None
    preset: str | None = None
    dtype: str | None = None
    steps: int | None = None
    cuda_graphs: bool = False
    fuse_bias: bool = False
    ulysses: int | None = None
    ring: int | None = None
    vae_grid: str | None = None
    fit: Sequence[str] = ()

    @property
    def model(self) -> str:
        """Name of the preset."""
        return self.preset or ("mid" if self.gpu.lower() == "cpu" else "14b")

    def job(self, itemsize: int) -> Job:
        """Describe the work of a chunk, in numbers of ``itemsize`` bytes.

        Raises:
            UserError: Preset or size is invalid.
        """
        return Job.of(
            get_preset(self.model),
            self.size,
            steps=4 if self.steps is None else self.steps,
            itemsize=itemsize,
            graphs=self.cuda_graphs,
            schedule=Schedule(fuse_bias=self.fuse_bias),
        )

    def choice(self, fp8: bool | None) -> Choice:
        """Select the splits to consider.

        Raises:
            UserError: The grid is invalid.
        """
        grid = Grid.parse(self.vae_grid) if self.vae_grid else None
        return Choice(ulysses=self.ulysses, ring=self.ring, grid=grid, fp8=fp8)

    def title(self, job: Job) -> str:
        """Describe model, size and steps."""
        fused = ", fused biases" * self.fuse_bias
        return f"{self.model} at {job.size[0]}x{job.size[1]}, {job.steps} steps{fused}"

    def settings(self, job: Job, world: int, nodes: int) -> dict[str, Any]:
        """Describe the forecast's subject for machines."""
        return {
            "forecast": True,
            "settings": {
                "preset": self.model,
                "size": list(job.size),
                "tokens": job.tokens,
                "steps": job.steps,
                "dtype": {2: "bfloat16", 4: "float32"}[job.itemsize],
                "cuda_graphs": job.graphs,
                "fuse_bias": job.schedule.fuse_bias,
                "gpu": self.gpu.lower(),
                "gpus": world,
                "nodes": nodes,
            },
        }


@dataclass(frozen=True, kw_only=True)
class GpuOutlook:
    """Plans for a number of GPUs.

    Attributes:
        request: What was asked.
        job: What is done.
        plans: Splits, the best first.
        machine: What they run on.
        evidence: What the machine's figures rest on.
        choice: Splits that were looked at.
        world: GPUs.
        nodes: Nodes.
    """

    request: Request
    job: Job
    plans: list[Plan]
    machine: GpuMachine
    evidence: Evidence
    choice: Choice
    world: int
    nodes: int

    @classmethod
    def of(cls, request: Request, *, plotted: bool = False) -> Self:
        """Forecast a request for GPUs.

        Args:
            request: Of a GPU.
            plotted: All numbers of GPUs will be drawn.

        Raises:
            UserError: The request cannot be met, or a report cannot be read.
        """
        gpu = get_gpu(request.gpu, besides=("cpu",))
        world = 8 if request.gpus is None else request.gpus
        if request.dtype == "fp32":
            raise UserError("--dtype fp32: GPUs are planned in bf16; drop it")
        fp8 = _PRECISIONS[request.precision]
        if gpu.fp8 is None:
            if fp8:
                raise UserError(
                    f"--precision fp8: the {gpu.title} has no FP8 tensor cores; use --precision "
                    "exact"
                )
            fp8 = False
        nodes = default_nodes(world) if request.nodes is None else request.nodes
        choice = request.choice(fp8)
        if plotted and nodes != fewest_nodes(world):
            raise UserError(
                f"--nodes {nodes}: --plot shows every number of GPUs on as few nodes as hold them, "
                "8 GPUs each; leave one of the two out"
            )
        if plotted and choice != Choice(fp8=fp8):
            raise UserError("--plot: shows the best split for every number of GPUs; drop the split")
        job = request.job(itemsize=2)
        evidence = gpu_evidence(read_recorded(request.fit), gpu, public_shares())
        machine = GpuMachine(gpu=gpu, shares=evidence.shares, measured=evidence.figures)
        return cls(
            request=request,
            job=job,
            plans=search(job, machine, world=world, nodes=nodes, choice=choice),
            machine=machine,
            evidence=evidence,
            choice=choice,
            world=world,
            nodes=nodes,
        )

    @property
    def title(self) -> str:
        """Title of the table."""
        nodes = f", {self.nodes} nodes" if self.nodes > 1 else ""
        return f"{self._model}, bf16, {self.world} x {self.machine.gpu.title}{nodes}"

    @property
    def _model(self) -> str:
        return self.request.title(self.job)

    def draw(self, target: Path) -> None:
        """Draw the scaling over 1 to 16 GPUs."""
        precisions = [False, True] if self.choice.fp8 is None else [self.choice.fp8]
        curves = {
            fp8: scaling(
                self.job, self.machine, worlds=WORLDS, choice=replace(self.choice, fp8=fp8)
            )
            for fp8 in precisions
        }
        title = f"{self._model} a chunk, {self.machine.gpu.title}"
        draw(curves, target, title=title, commit=commit())

    def as_json(self) -> dict[str, Any]:
        """Convert to JSON's types, with the source of every figure."""
        job, machine, evidence = self.job, self.machine, self.evidence
        quantities = machine.gpu.quantities() | dict(evidence.figures)
        parts = parameters(job.dit, job.vae, job.encoder)
        return self.request.settings(job, self.world, self.nodes) | {
            "hardware": {name: vars(quantity) for name, quantity in quantities.items()},
            "shares": {
                name: {
                    "value": value,
                    "source": evidence.measured.get(name, f"fitted to {len(figures())} figures"),
                }
                for name, value in machine.shares.as_dict().items()
            },
            "assumed": vars(machine.costs),
            "parameters": {name: vars(part) for name, part in parts.items()},
            "plans": [_plan_as_json(plan) for plan in self.plans],
        }


@dataclass(frozen=True, kw_only=True)
class CpuOutlook:
    """The plan for one rank on a CPU.

    Attributes:
        request: What was asked.
        job: What is done.
        plans: One.
        machine: Fitted to the reports.
        reports: Profiles of that CPU.
    """

    request: Request
    job: Job
    plans: list[Plan]
    machine: CpuMachine
    reports: list[Observed]

    @classmethod
    def of(cls, request: Request) -> Self:
        """Fit to the reports, and forecast.

        Raises:
            UserError: The request cannot be met, or there are no reports of that kind.
        """
        if request.gpus not in (None, 1) or request.nodes not in (None, 1):
            raise UserError("--gpu cpu: one rank only; drop --gpus and --nodes")
        for option in ("ulysses", "ring", "vae_grid", "cuda_graphs"):
            if getattr(request, option):
                raise UserError(f"--{option.replace('_', '-')}: cannot be combined with --gpu cpu")
        if not request.fit:
            raise UserError("--gpu cpu: needs --fit with reports of 'livetalk profile' on that CPU")
        itemsize, fp8 = _ITEMSIZES[request.dtype], request.precision == "fp8"
        name, job = request.model, request.job(itemsize)
        reports = [
            report
            for report in cpu_reports(read_recorded(request.fit))
            if (report.job.itemsize, report.job.fp8) == (itemsize, fp8)
            and report.job.schedule.once
            and report.setting["model"] == name
        ]
        if not reports:
            raise UserError(
                f"--fit: no report is of {name} on one rank of a CPU in "
                f"{request.dtype or 'fp32'}, {'fp8' if fp8 else 'exact'}; record one with "
                f"'livetalk profile --preset {name}'"
            )
        check_one_setting(reports)
        machine = fit_cpu(reports)
        plans = search(job, machine, world=1, nodes=1, choice=Choice(fp8=fp8))
        return cls(request=request, job=job, plans=plans, machine=machine, reports=reports)

    @property
    def title(self) -> str:
        """Title of the table."""
        return f"{self.request.title(self.job)}, {self.request.dtype or 'fp32'}, CPU"

    def as_json(self) -> dict[str, Any]:
        """Convert to JSON's types."""
        return self.request.settings(self.job, 1, 1) | {
            "rates": self.machine.rates.as_dict(),
            "fitted_to": [str(report.path) for report in self.reports],
            "plans": [_plan_as_json(plan) for plan in self.plans],
        }


def _plan_as_json(plan: Plan) -> dict[str, Any]:
    found, layout = plan.forecast, plan.layout
    name, share = found.bottleneck
    return {
        "ulysses": layout.mesh.ulysses,
        "ring": layout.mesh.ring,
        "vae_grid": str(layout.grid),
        "nodes": layout.nodes,
        "precision": "fp8" if plan.job.fp8 else "exact",
        "approximate": plan.job.fp8,
        "chunk": found.chunk,
        "step": found.step,
        "fps": found.fps,
        "realtime_factor": found.real_time,
        "startup": found.startup,
        "stages": {stage: dict(parts) for stage, parts in found.stages.items()},
        "beside": dict(found.beside),
        "added_by_beside": found.added,
        "bottleneck": {"part": name, "share": share},
        "memory": plan.memory.as_json() if plan.memory else None,
        "capacity": plan.capacity,
        "fits": plan.fits,
    }
