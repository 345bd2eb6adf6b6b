"""Benchmarks one case from start to finish: inputs, checks, rounds, result."""

import dataclasses
import functools
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator

from ..dispatch import pick
from ..lines import brief
from ..registry import backend_names, load_backend, load_op
from ..spec import Arguments, Case
from .baseline import COMPILE, EAGER, compile_reference
from .clocks import read_clocks
from .cuda_timer import CudaTimer
from .report import LEFT_OUT, RED, TIMED, Result, Row, compare, joined
from .roofline import Probe, Roofline, from_samples, start_probes
from .score import standing
from .timer import MIN_ROUNDS, CpuTimer, Sampler, Timer, interleave
from .timers import make_timer
from .verify import Judge, check_small_cases

SEED = 0
COMPUTE_COUNTS = 0.2  # fraction of the floor above which each round also measures the matrix rate
TRIALS = 3  # each warms up, captures and takes its rounds anew
CLOCK = "clock"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How cases are timed.

    Attributes:
        backends: Backends to time in addition to the baselines; empty for all that can run.
        compile: Also time the reference through torch.compile.
        hot: Leave inputs in the cache between calls.
        rounds: Number of rounds over all trials; None to decide by time.
        seconds: Time for a case's rounds, including overheads.
        least: Rounds that are run even if they take longer.
    """

    backends: tuple[str, ...] = ()
    compile: bool = True
    hot: bool = False
    rounds: int | None = None
    seconds: float = 3.0
    least: int = MIN_ROUNDS


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A participant: a row of the report, and its function (None: it does not take part)."""

    row: Row
    run: Callable[..., Any] | None = None


def make_inputs(case: Case) -> Arguments:
    """Build the arguments of a case's call, the same every time."""
    return load_op(case.op).make_inputs(case, Generator().manual_seed(SEED))


def contestants(case: Case, settings: Settings) -> list[Contestant]:
    """List the eager baseline, then the backends; those left out say why."""
    chosen = pick(case, "auto", named=False).name
    reference = load_backend(case.op, "reference")
    eager = Row(backend=EAGER, state=TIMED, note="", auto=chosen == "reference")
    found = [Contestant(row=eager, run=reference.run)]
    for name in backend_names(case.op):
        if name == "reference" or (settings.backends and name not in settings.backends):
            continue
        backend = load_backend(case.op, name)
        row = Row(
            backend=name,
            state=TIMED,
            note="",
            auto=chosen == name,
            approximate=backend.approximate,
        )
        reason = backend.supports(case)
        if reason is None and is_interpreted(case, name) and name not in settings.backends:
            reason = f"runs in Triton's interpreter here; --backend {name} times it all the same"
        if reason is not None:
            row = dataclasses.replace(row, state=LEFT_OUT, note=reason)
        found.append(Contestant(row=row, run=backend.run if reason is None else None))
    return found


def is_interpreted(case: Case, backend: str) -> bool:
    """Return whether a backend that supports a case would run in Triton's interpreter."""
    return case.device.type == "cpu" and load_backend(case.op, backend).launches is not None


def bench_case(
    case: Case,
    settings: Settings,
    probes: dict[str, Probe],
    rough: Roofline,
    say: Callable[[str], None],
) -> Result:
    """Check and time every backend on a case.

    Args:
        case: The case; it must fit in memory.
        settings: How to time.
        probes: Probes of the machine's limits, sampled in the same rounds.
        rough: Rough estimates of the limits.
        say: Called with progress messages.
    """
    with torch.inference_mode():
        arguments = make_inputs(case)
        checked = check(case, arguments, settings, rough, say)
        return _time(case, arguments, checked, settings, probes, rough, say)


def check(
    case: Case,
    arguments: Arguments,
    settings: Settings,
    rough: Roofline,
    say: Callable[[str], None],
) -> list[Contestant]:
    """Check the contestants and record the verdicts; those red or left out don't run again."""
    say("reference")
    judge = Judge(case, arguments, rough)
    found = contestants(case, settings)
    if settings.compile:
        say("torch.compile")
        begin = time.perf_counter()
        run, reason = compile_reference(case.op, arguments)
        state = TIMED if run is not None else LEFT_OUT
        setup = time.perf_counter() - begin
        row = Row(backend=COMPILE, state=state, note=reason, setup=setup)
        found.insert(1, Contestant(row=row, run=run))
    return [_judged(case, arguments, contestant, judge, say) for contestant in found]


def _judged(
    case: Case,
    arguments: Arguments,
    contestant: Contestant,
    judge: Judge,
    say: Callable[[str], None],
) -> Contestant:
    row, run = contestant.row, contestant.run
    if run is None:
        return contestant
    say(f"checking {row.backend}")
    try:
        ok, note = True, ""
        if row.backend != COMPILE:
            run, setup = _set_up(case.op, row.backend, run, arguments)
            row = dataclasses.replace(row, setup=setup)
        if row.backend not in (EAGER, COMPILE):
            ok, note = check_small_cases(case.op, row.backend, case.device, case.dtype)
        if ok:
            ok, note = judge.check(
                run, is_reference=row.backend == EAGER, approximate=row.approximate
            )
    except Exception as error:  # whatever a backend fails with: it is red, the others continue
        ok, note = False, brief(error)
    state = TIMED if ok else RED
    return Contestant(row=dataclasses.replace(row, state=state, note=note), run=run if ok else None)


def _set_up(
    op: str, backend: str, run: Callable[..., Any], arguments: Arguments
) -> tuple[Callable[..., Any], float]:
    """Call a backend once, with its weight packed; return it with the seconds that this took."""
    positional, keywords = arguments
    begin = time.perf_counter()
    run = packed(op, "reference" if backend == EAGER else backend, run, arguments)
    run(*positional, **keywords)
    return run, time.perf_counter() - begin


def packed(op: str, name: str, run: Callable[..., Any], arguments: Arguments) -> Callable[..., Any]:
    """Bind the packed weight, if an op takes one, as in the model."""
    parameters = list(inspect.signature(load_op(op).function).parameters)
    if "packed" not in parameters:
        return run
    weight = arguments[0][parameters.index("weight")]
    return functools.partial(run, packed=load_backend(op, name).pack(weight))


def _time(
    case: Case,
    arguments: Arguments,
    checked: Sequence[Contestant],
    settings: Settings,
    probes: dict[str, Probe],
    rough: Roofline,
    say: Callable[[str], None],
) -> Result:
    timer = make_timer(case.device, arguments, hot=settings.hot)
    cost = load_op(case.op).cost(case)
    runs = {entry.row.backend: entry.run for entry in checked if entry.run is not None}
    counts = cost.flops / rough.rate >= COMPUTE_COUNTS * rough.floor(cost)
    used = {name: probe for name, probe in probes.items() if counts or probe.limit == "bandwidth"}
    own = {f"probe {name}": run for name, run in start_probes(case.device, used).items()}
    timings, clocks = dict[str, str](), [read_clocks(case.device)]
    trials: list[dict[str, list[float]]] = []
    for rounds, seconds, least in _shares(settings):
        samplers, timings = _start(timer, runs, say, again=bool(trials))
        if not trials:
            clocks = [read_clocks(case.device)]  # under load
        say(f"timing {', '.join(samplers)}")
        begin = time.perf_counter()
        trials.append(interleave(samplers | own, rounds=rounds, seconds=seconds, least=least))
        if rounds is None and _spent(trials, time.perf_counter() - begin, seconds, settings):
            break
    clocks.append(read_clocks(case.device))
    samples = joined(trials)
    limits = {name: samples.pop(f"probe {name}") for name in used}
    roofline = from_samples(used, limits, rough)
    rows = [
        dataclasses.replace(
            entry.row,
            timing=timings.get(entry.row.backend, ""),
            kernels=_kernels(timer, runs.get(entry.row.backend)),
        )
        for entry in checked
    ]
    return Result(
        case=case,
        cost=cost,
        roofline=roofline,
        copies=timer.copies if isinstance(timer, CpuTimer) else None,
        clocks=(clocks[0], clocks[1]),
        rows=compare(rows, trials),
        standing=standing(rows, samples, roofline.floor(cost)),
    )


def _shares(settings: Settings) -> list[tuple[int | None, float, int]]:
    """Split rounds, seconds and least rounds among the trials."""
    each, least = settings.seconds / TRIALS, -(-settings.least // TRIALS)
    if settings.rounds is None:
        return [(None, each, least)] * TRIALS
    trials = min(TRIALS, settings.rounds)
    more = settings.rounds % trials
    return [(settings.rounds // trials + (index < more), each, 1) for index in range(trials)]


def _spent(
    trials: Sequence[Mapping[str, Sequence[float]]],
    took: float,
    share: float,
    settings: Settings,
) -> bool:
    """Return whether a trial used up the time of all three, with rounds enough."""
    rounds = sum(len(next(iter(trial.values()))) for trial in trials)
    return took > 1.5 * share and rounds >= settings.least


def _start(
    timer: Timer, runs: Mapping[str, Callable[..., Any]], say: Callable[[str], None], *, again: bool
) -> tuple[dict[str, Sampler], dict[str, str]]:
    """Start samplers by backend; return them, and how each one times."""
    samplers, timings = dict[str, Sampler](), dict[str, str]()
    for name, run in runs.items():
        say(f"warming up {name}")
        samplers[name] = timer.start(run, again=again)
        timings[name] = timer.timing if isinstance(timer, CudaTimer) else CLOCK
    return samplers, timings


def _kernels(timer: Timer, run: Callable[..., Any] | None) -> float | None:
    if run is None or not isinstance(timer, CudaTimer):
        return None
    return timer.kernel_seconds(run)
