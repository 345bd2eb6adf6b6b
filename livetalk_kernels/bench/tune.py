"""Finds the fastest backend for a call: checked first, timed interleaved, within a budget.

Nothing that gives wrong results is timed, and nothing approximate unless requested. A backend must
meet the numerics contract on the op's small cases; at the timed sizes it is compared with the
reference, since for a small result the contract's rule may depend on how a few roundings fall.
The reference takes part, since ``auto`` may fall back to it.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import UserError
from ..lines import brief
from ..machine import commit
from ..precision import dtype_name
from ..registry import backend_names, load_backend
from ..spec import Arguments, Case
from ..tuning import Choice, MachineEntry, TuningKey
from .baseline import EAGER
from .cases import seconds_needed, too_large
from .roofline import Limits, Roofline
from .runner import Settings, contestants, is_interpreted, make_inputs, packed
from .timer import Sampler, Summary, interleave
from .timers import make_timer
from .verify import Judge, Verdict, check_small_cases

ROUNDS_SECONDS = (0.05, 3.0)  # minimum and maximum time for the rounds of a call
BUDGET_MARGIN = 1.5  # on the smallest budget that is advised: the next run may be slower
ROUNDS_SHARE = 0.5  # of a call's share of the budget; the rest is for checks and warm-up


@dataclass(frozen=True, kw_only=True)
class Call:
    """A case and its relative call frequency."""

    case: Case
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of one call.

    Attributes:
        call: The call.
        choice: The fastest backend; None if nothing was timed.
        skipped: Why nothing was timed; else empty.
        red: Backend -> why its results are wrong.
    """

    call: Call
    choice: Choice | None = None
    skipped: str = ""
    red: Mapping[str, str] = field(default_factory=dict)


class Tuner:
    """Measures calls on one device until the budget is spent."""

    def __init__(
        self,
        device: torch.device,
        *,
        budget: float,
        approximate: bool,
        say: Callable[[str, str], None],
    ) -> None:
        """Start with nothing measured.

        Args:
            device: Device to measure on.
            budget: Seconds for all calls together. A call that has begun is finished.
            approximate: Include approximate backends.
            say: Called with progress: the call, and its state.
        """
        self._limits = Limits(device)
        self._budget, self._approximate, self._say = budget, approximate, say

    def run(self, calls: Sequence[Call]) -> Iterator[Outcome]:
        """Measure the most frequent calls first, then the short ones.

        Args:
            calls: Calls, all on the device.

        Yields:
            One outcome per call, as soon as it is known.

        Raises:
            UserError: The budget, part of which goes to measuring the machine, is too short for
                any of the calls; the message says how much is needed.
        """
        begin = time.perf_counter()
        end = begin + self._budget
        waiting = [(call, self._roofline(call)) for call in calls]
        waiting.sort(key=lambda pair: (-pair[0].count, seconds_needed(pair[0].case, pair[1])))
        self._require_budget(waiting, time.perf_counter() - begin)
        for index, (call, roofline) in enumerate(waiting):
            left = end - time.perf_counter()
            reason = self._impossible(call.case, roofline, left)
            if reason is not None:
                yield Outcome(call=call, skipped=reason)
                continue
            head = f"[{index + 1}/{len(waiting)}] {call.case.op} {call.case.name}"
            try:
                yield self._measure(call, roofline, left / (len(waiting) - index), head)
            except torch.OutOfMemoryError:  # the other calls may fit
                yield Outcome(call=call, skipped="out of memory")

    def _require_budget(self, waiting: Sequence[tuple[Call, Roofline]], spent: float) -> None:
        fitting = [(call.case, limits) for call, limits in waiting if too_large(call.case) is None]
        least = min((seconds_needed(case, limits) for case, limits in fitting), default=0.0)
        if fitting and spent + least > self._budget:
            advised = math.ceil(BUDGET_MARGIN * (spent + least))
            raise UserError(
                f"--budget {self._budget:.4g}: nothing can be timed: measuring this machine took "
                f"{spent:.1f} s and the shortest call takes about {least:.1f} s; use --budget "
                f"{advised} or more"
            )

    def _roofline(self, call: Call) -> Roofline:
        self._say("machine", "measuring bandwidth and matrix rate")
        return self._limits.of(call.case)[1]

    def _impossible(self, case: Case, roofline: Roofline, left: float) -> str | None:
        if left <= 0:
            return f"the budget of {self._budget:.4g} s is spent"
        needed = seconds_needed(case, roofline)
        if needed > left:
            return f"would take about {needed:.0f} s; {left:.0f} s of the budget are left"
        return too_large(case)

    @torch.inference_mode()
    def _measure(self, call: Call, roofline: Roofline, share: float, head: str) -> Outcome:
        case = call.case
        arguments = make_inputs(case)
        self._say(head, "reference")
        judge = Judge(case, arguments, roofline, coarse=True)
        timer = make_timer(case.device, arguments, hot=False)
        red: dict[str, str] = {}
        samplers: dict[str, Sampler] = {}
        for name, run in self._runnable(case, arguments).items():
            self._say(head, f"checking {name}")
            ok, note = self._check(case, name, run, judge)
            if ok:
                samplers[name] = timer.start(run)
            else:
                red[name] = note
        if not samplers:
            return Outcome(call=call, skipped="no backend is right", red=red)
        self._say(head, f"timing {', '.join(samplers)}")
        least, most = ROUNDS_SECONDS
        seconds = min(most, max(least, ROUNDS_SHARE * share))
        samples = interleave(samplers, seconds=seconds)
        p50 = {name: Summary.of(own).p50 for name, own in samples.items()}
        choice = Choice(
            op=case.op,
            dtype=dtype_name(case.dtype),
            dims=dict(case.dims),
            variant=dict(case.options),
            calls=call.count,
            backend=min(p50, key=p50.__getitem__),
            p50=p50,
        )
        return Outcome(call=call, choice=choice, red=red)

    def _runnable(self, case: Case, arguments: Arguments) -> dict[str, Callable[..., Any]]:
        """Map names to the implementations that take part, with weights packed in advance."""
        names = [
            name
            for name in backend_names(case.op)
            if not is_interpreted(case, name)
            and (self._approximate or not load_backend(case.op, name).approximate)
        ]
        found = contestants(case, Settings(backends=tuple(names)))
        runs = {one.row.backend: one.run for one in found if one.run is not None}
        named = {"reference" if name == EAGER else name: run for name, run in runs.items()}
        return {name: packed(case.op, name, run, arguments) for name, run in named.items()}

    def _check(self, case: Case, name: str, run: Callable[..., Any], judge: Judge) -> Verdict:
        """Check the op's small cases, once per backend, then the call itself."""
        is_reference = name == "reference"
        try:
            if not is_reference:
                ok, note = check_small_cases(case.op, name, case.device, case.dtype)
                if not ok:
                    return ok, note
            approximate = load_backend(case.op, name).approximate
            return judge.check(run, is_reference=is_reference, approximate=approximate)
        except Exception as error:  # whatever a backend fails with: it is red, the others continue
            return False, brief(error)


def entry_of(key: TuningKey, outcomes: Sequence[Outcome], *, complete: bool) -> MachineEntry:
    """Make this machine's entry of a tuning file; ``complete``: no call was left."""
    choices = tuple(outcome.choice for outcome in outcomes if outcome.choice is not None)
    return MachineEntry(
        key=key,
        complete=complete and len(choices) == len(outcomes),
        date=time.strftime("%Y-%m-%d"),
        commit=commit(),
        choices=choices,
    )


def outcomes_as_json(entry: MachineEntry, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Describe an entry, what was red and what was skipped, for machines."""

    def name(outcome: Outcome) -> dict[str, Any]:
        case = outcome.call.case
        return {"op": case.op, "case": case.name, "dims": dict(case.dims)}

    return {
        **dataclasses.asdict(entry),
        "red": [
            name(outcome) | {"backend": backend, "reason": reason}
            for outcome in outcomes
            for backend, reason in outcome.red.items()
        ],
        "skipped": [
            name(outcome) | {"reason": outcome.skipped} for outcome in outcomes if outcome.skipped
        ],
    }
