"""One case from beginning to end: inputs, checks, rounds, result."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator

from ..dispatch import backend_names, load_backend, load_op, pick
from ..machine import sm_clock
from ..spec import Arguments, Case
from .baseline import COMPILE, EAGER, compile_reference
from .report import LEFT_OUT, RED, TIMED, Result, Row, compare
from .roofline import Probe, Roofline, from_samples, start_probes
from .timer import MIN_ROUNDS, CpuTimer, CudaTimer, Sampler, interleave, make_timer
from .verify import Judge, check_small_cases

SEED = 0
COMPUTE_COUNTS = 0.2  # share of the floor from which on the matrix rate is measured in each round
MAX_NOTE = 300


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How cases are timed.

    Attributes:
        backends: Backends to time, besides the baselines; empty: all that can run.
        compile: Time the reference through torch.compile too.
        hot: Leave inputs in the cache from call to call.
        rounds: Number of rounds; None: by time.
        seconds: Time for a case's rounds, with all that they cost.
        least: Rounds that are made even if they take longer.
    """

    backends: tuple[str, ...] = ()
    compile: bool = True
    hot: bool = False
    rounds: int | None = None
    seconds: float = 3.0
    least: int = MIN_ROUNDS


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """What takes turns: a row of the report, and what it runs (None: it does not take part)."""

    row: Row
    run: Callable[..., Any] | None = None


def make_inputs(case: Case) -> Arguments:
    """Arguments of a case's call, the same every time."""
    return load_op(case.op).make_inputs(case, Generator().manual_seed(SEED))


def contestants(case: Case, settings: Settings) -> list[Contestant]:
    """The eager baseline, then the backends; those that are left out say why."""
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
    """Whether a backend that supports a case would run it in Triton's interpreter."""
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
        case: The case; it fits the memory.
        settings: How to time.
        probes: What measures the machine's limits, in the same rounds.
        rough: The limits as estimated before.
        say: Told what is going on.
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
    """The contestants with their verdicts; those that are red or left out run no more."""
    say("reference")
    judge = Judge(case, arguments, rough)
    found = contestants(case, settings)
    if settings.compile:
        say("torch.compile")
        run, reason = compile_reference(case.op, arguments)
        state = TIMED if run is not None else LEFT_OUT
        row = Row(backend=COMPILE, state=state, note=reason)
        found.insert(1, Contestant(row=row, run=run))
    return [_judged(case, contestant, judge, say) for contestant in found]


def _judged(
    case: Case, contestant: Contestant, judge: Judge, say: Callable[[str], None]
) -> Contestant:
    row, run = contestant.row, contestant.run
    if run is None:
        return contestant
    say(f"checking {row.backend}")
    try:
        ok, note = True, ""
        if row.backend not in (EAGER, COMPILE):
            ok, note = check_small_cases(case.op, row.backend, case.device, case.dtype)
        if ok:
            ok, note = judge.check(
                run, is_reference=row.backend == EAGER, approximate=row.approximate
            )
    except Exception as error:  # whatever a backend fails with: it is red, the others go on
        ok, note = False, _brief(error)
    state = TIMED if ok else RED
    return Contestant(row=dataclasses.replace(row, state=state, note=note), run=run if ok else None)


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
    rows, samplers = [], dict[str, Sampler]()
    for contestant in checked:
        row = contestant.row
        if contestant.run is not None:
            say(f"warming up {row.backend}")
            samplers[row.backend] = timer.start(contestant.run)
            captured = isinstance(timer, CudaTimer) and timer.captured
            row = dataclasses.replace(row, captured=captured)
        rows.append(row)
    counts = cost.flops / rough.rate >= COMPUTE_COUNTS * rough.floor(cost)
    used = {name: probe for name, probe in probes.items() if counts or probe.limit == "bandwidth"}
    own = {f"probe {name}": run for name, run in start_probes(case.device, used).items()}
    say(f"timing {', '.join(samplers)}")
    samples = interleave(
        samplers | own,
        rounds=settings.rounds,
        seconds=settings.seconds,
        least=settings.least,
    )
    limits = {name: samples.pop(f"probe {name}") for name in used}
    return Result(
        case=case,
        cost=cost,
        roofline=from_samples(used, limits, rough),
        copies=timer.copies if isinstance(timer, CpuTimer) else None,
        sm_clock_mhz=sm_clock(case.device),
        rows=compare(rows, samples),
    )


def _brief(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())[:MAX_NOTE]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
