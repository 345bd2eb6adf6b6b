"""Time one denoising step with every attention backend, against the published schedule.

    python benchmarks/step.py --preset 14b --precision both --json step.json
    python benchmarks/step.py --preset 14b --precision fp8 --attention sdpa_cudnn
    python benchmarks/step.py --preset tiny --device cpu --rounds 3

Random weights, generated on the device. Every way is first compared with plain PyTorch on the same
weights and inputs (relative L2); what is wrong is not timed. Then all are interleaved, in groups,
each together with the published schedule: separate q, k and v, complex rotations in double
precision, and everything constant recomputed in every step. That is compiled block by block
(attentions, feed-forward, norms), not as one graph: all 40 layers share the compiled code, which
takes seconds instead of minutes and forgoes only fusions across matrix products.

FLOPs are those of a step without repeated work, for all ways, so rates are comparable. The floor is
their time at the rate of a large matrix product, measured in the same rounds.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from race import (
    BOUNDS,
    HEADING,
    TIMED,
    Budget,
    Entrant,
    Output,
    Probes,
    Race,
    Run,
    exit_code,
    new_parser,
    resolve,
    row_line,
    run_main,
    say,
)
from random_models import (
    PROMPT_ROWS,
    TORCH,
    Given,
    Step,
    bind,
    fill,
    latent_size,
    make_dit,
    own_step,
    parameter_bytes,
    published_step,
    share,
    sized,
)

from livetalk_kernels import KernelConfig, UserError
from livetalk_kernels.bench.runner import is_interpreted
from livetalk_kernels.ops import Ops
from livetalk_kernels.precision import FP8, dtype_name
from livetalk_kernels.registry import Backend, backend_names, load_backend
from livetalk_kernels.runtime.cuda_graph import CudaEngine
from livetalk_kernels.spec import Case
from livetalk_model.config import Preset
from livetalk_model.dit import DiT
from livetalk_model.dry_run.work import dit_flops
from livetalk_model.layers import Block
from livetalk_model.stream.graphs import GraphedStep

SCHEMA = "livetalk/step/1"
OP = "chunk_attention"
TRUTH = "sdpa_math"
PUBLISHED = ("sdpa_flash", "sdpa_cudnn")
BASE = {"sdpa_flash": 4, "sdpa_cudnn": 3, "ours": 2, "eager": 1}
APPROXIMATE_BOUND = 0.25  # 5 % of one FP8 product, accumulated over 40 layers
# Third-party kernels first: whatever breaks the GPU's context breaks all that come later.
LATE = ("triton", "triton_fp8")
LAST_RESORT = "reference"  # for the truth: slower, but always available
SLOW = (LAST_RESORT, "reference_fp8", TRUTH)
PLAIN = ("reference",)  # for models that only hold weights
LIBRARY_GEMM = {"cuda": "scaled_mm", "cpu": "reference"}
ACTIVATION_BYTES = 160  # maximum per token and channel: complex rotations in double precision
COMPILE_SECONDS = 15.0
FRACTION = 0.95  # of the free memory


@dataclass(frozen=True, kw_only=True)
class Work:
    """FLOPs of one step: the blocks' linear layers, self-attention, and the rest."""

    linears: int
    attention: int
    rest: int

    @classmethod
    def of(cls, preset: Preset) -> "Work":
        """Count for one preset's size."""
        config = preset.dit
        grid = tuple(n // p for n, p in zip(latent_size(preset), config.patch_size, strict=True))
        frames, rows, columns = grid
        tokens = frames * rows * columns
        total = dit_flops(config, (frames, rows, columns), text_rows=PROMPT_ROWS).step
        layers, dim = config.num_layers, config.dim
        linears = 2 * layers * tokens * (8 * dim**2 + 2 * dim * config.ffn_dim)
        attention = 4 * layers * tokens**2 * dim
        return cls(linears=linears, attention=attention, rest=total - linears - attention)

    @property
    def total(self) -> int:
        """Sum of all."""
        return self.linears + self.attention + self.rest

    def floor(
        self, rates: Mapping[torch.dtype, float], linears: torch.dtype, attention: torch.dtype,
        rest: torch.dtype,
    ) -> float:  # fmt: skip
        """Compute the seconds at the rates of large products."""
        return (
            self.linears / rates[linears]
            + self.attention / rates[attention]
            + self.rest / rates[rest]
        )


def attention_backends(args: argparse.Namespace, case: Case) -> dict[str, str | None]:
    """Map self-attention backends to why they cannot run, in execution order.

    Raises:
        UserError: One that was named does not exist or cannot run.
    """
    names = sorted(
        set(backend_names(OP)) - set(SLOW),
        key=lambda name: (name in LATE, name == PUBLISHED[0], name),  # `sdpa` is the same there
    )
    if args.attention:
        for name in args.attention:
            if name not in backend_names(OP):
                known = ", ".join(backend_names(OP))
                raise UserError(f"--attention {name}: there is no such backend; choose {known}")
        names = list(dict.fromkeys(args.attention))
    found = {name: load_backend(OP, name).supports(case) for name in names}
    for name, reason in found.items():
        if args.attention and reason is not None:
            raise UserError(f"--attention {name}: cannot run: {reason}")
        if not args.attention and reason is None and is_interpreted(case, name):
            found[name] = f"runs in Triton's interpreter here; --attention {name} takes it"
    return found


def compiled(dit: DiT, ops: Ops, compiler: str = "inductor") -> DiT:
    """Compile a model's attentions and feed-forwards; return it with compiled norms, too."""
    how: Any = {"dynamic": False, "backend": compiler}
    choice = ops.choices["add_norm"]
    norm = dataclasses.replace(choice, run=torch.compile(choice.run, **how))
    with torch.device("meta"):
        other = DiT(dit.config, Ops(ops.choices | {"add_norm": norm}), reuse=dit.reuse)
    share(dit, other)
    for block in other.blocks:
        assert isinstance(block, Block)
        for part in (block.self_attn, block.cross_attn, block.audio_cross_attn, block.ffn):
            part.compile(**how)
    return other


class Field:
    """All ways to take a step, with one set of weights."""

    def __init__(
        self, args: argparse.Namespace, preset: Preset, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Create the weights and inputs."""
        self.args, self.preset, self.device, self.dtype = args, preset, device, dtype
        self.given = Given.draw(preset, device, dtype)
        config = preset.dit
        dims = {"H": config.num_heads, "d": config.head_dim}
        self.case = Case(op=OP, device=device, dtype=dtype, dims=dims)
        self.weights = make_dit(preset, self._ops(PLAIN))
        fill(self.weights, dtype=dtype, device=device)
        self.quantized: DiT | None = None
        if args.precision != "exact":
            self.quantized = make_dit(preset, self._ops(PLAIN), fp8=True)
            fill(self.quantized, dtype=dtype, device=device)

    def _ops(self, choices: Sequence[str]) -> Ops:
        return bind(self.preset, KernelConfig.parse(choices), self.device, self.dtype)

    def truth(self) -> tuple[str, torch.Tensor]:
        """Compute the truth in plain PyTorch, unquantised; name its self-attention backend."""
        missing = load_backend(OP, TRUTH).supports(self.case)
        name = TRUTH if missing is None else LAST_RESORT
        by = "" if missing is None else f" by {name}: {TRUTH} {missing}"
        say(f"calculating what is right{by}")
        dit = make_dit(self.preset, self._ops((*PLAIN, f"{OP}={name}")))
        share(self.weights, dit)
        return name, own_step(dit, self.given)(self.given.latent)

    def published(self, attention: str, reason: str | None, *, compile_it: bool) -> Entrant:
        """Create an entrant for the published schedule."""

        def build() -> Run:
            ops = self._ops((*TORCH, f"{OP}={attention}"))
            dit = make_dit(self.preset, ops, reuse=False)
            share(self.weights, dit)
            if compile_it:
                dit = compiled(dit, ops)
            return self._run(published_step(dit, self.given))

        return Entrant(
            name=f"published, {attention}" + (", compiled" if compile_it else ""),
            build=build,
            bound=BOUNDS[self.dtype],
            about=self._about("published", attention, exact=True, compiled=compile_it),
            base=BASE[attention if compile_it else "eager"],
            reason=reason,
            seconds=COMPILE_SECONDS if compile_it else 0.0,
        )

    def ours(
        self,
        attention: str,
        *,
        reason: str | None = None,
        torch_kernels: bool = False,
        graph: bool = False,
        base: int = 0,
        fp8: bool = False,
    ) -> Entrant:
        """Create an entrant for our schedule.

        Args:
            attention: Backend of self-attention.
            reason: Why it cannot run.
            torch_kernels: Use PyTorch's own kernels for everything else.
            graph: Replay a CUDA graph.
            base: See `Entrant`.
            fp8: Use FP8 for the blocks' linear layers.
        """
        backend = load_backend(OP, attention)
        library = LIBRARY_GEMM[self.device.type]
        if torch_kernels and fp8 and reason is None:
            case = Case(op="fp8_gemm", device=self.device, dtype=self.dtype)
            reason = load_backend(case.op, library).supports(case)

        def build() -> Run:
            choice = f"{OP}={attention}"
            if torch_kernels:
                gemms = [f"{op}={library}" for op in ("fp8_gemm", "fp8_gemm_gelu_quant") if fp8]
                ops = self._ops((*TORCH, *gemms, choice))
            else:
                config = KernelConfig.from_sources([*self.args.backend, choice])
                ops = bind(self.preset, config, self.device, self.dtype)
            dit = make_dit(self.preset, ops, fp8=fp8)
            weights = self.quantized if fp8 else self.weights
            assert weights is not None
            share(weights, dit)
            call = GraphedStep(dit, CudaEngine(self.device)) if graph else None
            return self._run(own_step(dit, self.given, call))

        exact = not (fp8 or backend.approximate)
        kind = ", torch kernels" if torch_kernels else ", CUDA graph" if graph else ""
        return Entrant(
            name=f"ours{', FP8' if fp8 else ''}, {attention}{kind}",
            build=build,
            bound=BOUNDS[self.dtype] if exact else APPROXIMATE_BOUND,
            about=self._about(
                "ours", attention, exact=exact, graph=graph, backend=backend, fp8=fp8
            ),
            base=base,
            reason=reason,
        )

    def _run(self, step: Step) -> Run:
        return partial(step, self.given.latent)

    def _about(
        self, schedule: str, attention: str, *, exact: bool, backend: Backend | None = None,
        fp8: bool = False, **more: bool,
    ) -> dict[str, Any]:  # fmt: skip
        return {
            "schedule": schedule,
            "attention": attention,
            "linears": dtype_name(FP8 if fp8 else self.dtype),
            "attention_dtype": dtype_name(
                FP8 if backend is not None and backend.approximate else self.dtype
            ),
            "approximate": not exact,
            "compiled": False,
            "graph": False,
            **more,
        }

    def groups(self) -> list[list[Entrant]]:
        """Group what runs together, safest first."""
        backends = attention_backends(self.args, self.case)
        able = [name for name, reason in backends.items() if reason is None]
        usual = "sdpa" if "sdpa" in able else able[0] if able else None
        flash, cudnn = (load_backend(OP, name).supports(self.case) for name in PUBLISHED)
        published = [self.published(PUBLISHED[0], flash, compile_it=False)]
        compiled_ones = [
            self.published(PUBLISHED[0], flash, compile_it=True),
            self.published(PUBLISHED[1], cudnn, compile_it=True),
        ]
        others = {name: reason for name, reason in backends.items() if name != usual}
        kinds = {"exact": (False,), "fp8": (True,), "both": (False, True)}[self.args.precision]
        first: list[list[Entrant]] = []
        early: list[list[Entrant]] = []
        late: list[list[Entrant]] = []
        for fp8 in kinds:
            ours = partial(self.ours, fp8=fp8)
            if not self.args.attention:
                plain = ours("sdpa", torch_kernels=True, reason=backends["sdpa"])
                first.append([*published, plain])
            elif published:
                first.append(published)
            published = []
            if usual is not None:
                # The baseline of the others is exact, unless nothing is.
                first.append([ours(usual, base=BASE["ours"] if fp8 == kinds[0] else 0)])
                if self.device.type == "cuda":
                    early.append([ours(usual, graph=True)])
            early.append([ours(n, reason=why) for n, why in others.items() if n not in LATE])
            late += [[ours(n, reason=why)] for n, why in others.items() if n in LATE]
        groups = (*first, [] if self.args.no_compile else compiled_ones, *early, *late)
        return [group for group in groups if group]


def fitting_layers(preset: Preset, device: torch.device, dtype: torch.dtype, *, fp8: bool) -> int:
    """Count the preset's blocks that fit in the GPU's free memory, with weights and activations."""
    if device.type != "cuda":
        return preset.dit.num_layers
    one, two = (dataclasses.replace(preset.dit, num_layers=n) for n in (1, 2))

    def need(config: Any) -> int:
        exact = parameter_bytes(config, dtype, fp8=False)
        return exact + (parameter_bytes(config, dtype, fp8=True) if fp8 else 0)

    free = FRACTION * torch.cuda.mem_get_info(device)[0]
    frames, height, width = latent_size(preset)
    free -= ACTIVATION_BYTES * frames * height * width // 4 * preset.dit.dim
    each = need(two) - need(one)
    count = int((free - need(one)) // each) + 1
    if count < 1:
        raise UserError(f"--preset {preset.name}: not one of its blocks fits the GPU's memory")
    return min(preset.dit.num_layers, count)


def measure(args: argparse.Namespace, budget: Budget) -> tuple[Output, Race]:
    """Check and time everything.

    Raises:
        UserError: An option is invalid.
    """
    device, dtype = resolve(args)
    preset = sized(args.preset, size=args.size)
    whole = preset.dit.num_layers
    layers = args.layers or fitting_layers(preset, device, dtype, fp8=args.precision != "exact")
    preset = sized(args.preset, layers=layers, size=args.size)
    work = Work.of(preset)
    settings = {
        "preset": args.preset,
        "size": list(preset.size),
        "layers": layers,
        "layers_of_preset": whole,
        "device": str(device),
        "dtype": dtype_name(dtype),
        "precision": args.precision,
        "random_weights": True,
    }
    output = Output(args.json, schema=SCHEMA, settings=settings, flops=dataclasses.asdict(work))
    output.write()
    if layers < whole:
        say(f"{layers} of {whole} layers")
    with torch.inference_mode():
        say("making weights")
        field = Field(args, preset, device, dtype)
        groups = field.groups()
        settings["truth"], truth = field.truth()
        fp8 = any(_uses_fp8(entrant) for group in groups for entrant in group)
        probes = Probes(device, [dtype, FP8] if fp8 else [dtype])
        race = Race(truth, device, budget, output, probes)
        output.value["rows"] = race.rows
        for index, group in enumerate(groups):
            race.group(group, rounds=args.rounds, share=1 / (len(groups) - index))
            finish(race, work, probes, dtype)
            output.write()
    output.value["complete"] = not race.out_of_time
    if device.type == "cuda":
        output.value["max_memory_bytes"] = torch.cuda.max_memory_allocated(device)
    output.write()
    return output, race


def _uses_fp8(entrant: Entrant) -> bool:
    if entrant.reason is not None:
        return False
    return dtype_name(FP8) in (entrant.about["linears"], entrant.about["attention_dtype"])


def finish(race: Race, work: Work, probes: Probes, dtype: torch.dtype) -> None:
    """Add rates and floors to timed rows."""
    rates = probes.rates()
    names = {dtype_name(known): known for known in rates}
    for row in race.rows:
        if row["state"] == TIMED:
            linears, attention = names[row["linears"]], names[row["attention_dtype"]]
            floor, median = work.floor(rates, linears, attention, dtype), row["seconds"]["p50"]
            row |= {"tflop_per_s": work.total / median / 1e12, "floor": floor}
            row |= {"of_floor": floor / median, "rates": {n: rates[d] for n, d in names.items()}}


def table(output: Mapping[str, Any]) -> str:
    """The result for people."""
    settings = output["settings"]
    height, width = settings["size"]
    lines = [
        f"{settings['preset']} {height}x{width}, {settings['layers']} of "
        f"{settings['layers_of_preset']} layers, {settings['dtype']}, {settings['precision']}",
        HEADING,
        *(row_line(row["name"], row) for row in output["rows"]),
        *filter(None, [output.get("lost")]),
    ]
    rates: Mapping[str, float] = next((r["rates"] for r in output["rows"] if "rates" in r), {})
    if rates:
        text = ", ".join(f"{rate / 1e12:.4g} TFLOP/s in {name}" for name, rate in rates.items())
        lines.append(f"floor: {sum(output['flops'].values()) / 1e12:.4g} TFLOP at {text}")
    return "\n".join(lines)


def make_parser() -> argparse.ArgumentParser:
    """Options."""
    parser = new_parser(__doc__)
    parser.add_argument("--precision", default="exact", choices=("exact", "fp8", "both"))
    parser.add_argument(
        "--attention", action="append", default=[], metavar="NAME",
        help="backend of self-attention; may be repeated (default: all that can run)",
    )  # fmt: skip
    parser.add_argument("--layers", type=int, help="blocks (default: all that fit the memory)")
    parser.add_argument("--rounds", type=int, default=10, help="at most (default: 10)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    return parser


def main() -> int:
    """Measure, print, write."""
    args = make_parser().parse_args()
    budget = Budget.of(args)
    output, race = measure(args, budget)
    print(table(output.value))
    return exit_code(race.rows)


if __name__ == "__main__":
    run_main(main)
