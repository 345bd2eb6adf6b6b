"""Which backend is fastest for a call: checked first, timed in turns, within a budget.

Nothing whose results are wrong is timed, and nothing that approximates unless that is asked for.
A backend is held to the numerics contract at the op's small cases, and at the sizes that are timed
to the reference: there the contract's rule may turn on the luck of a few roundings of a small
result. The reference takes part, since ``auto`` may fall back to it.
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

ROUNDS_SECONDS = (0.05, 3.0)  # least and most time for the rounds of a call
BUDGET_MARGIN = 1.5  # of the least budget that is advised: the next run may be slower
ROUNDS_SHARE = 0.5  # of a call's share of the budget; the rest is checks and warming up


@dataclass(frozen=True, kw_only=True)
class Call:
    """A case and how often it is called, in proportion to the others."""

    case: Case
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of one call.

    Attributes:
        call: The call.
        choice: The fastest backend; None where nothing was timed.
        skipped: Why nothing was timed; empty where it was.
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
        """Nothing is measured yet.

        Args:
            device: Where.
            budget: Seconds for all calls together. A call that has begun is finished.
            approximate: Let backends take part that are not exact.
            say: Told what is going on: the call, and its state.
        """
        self._limits = Limits(device)
        self._budget, self._approximate, self._say = budget, approximate, say

    def run(self, calls: Sequence[Call]) -> Iterator[Outcome]:
        """Measure the calls that are made most often first, then the short ones.

        Args:
            calls: All on the device.

        Yields:
            One outcome a call, as soon as it is there.

        Raises:
            UserError: The budget, of which measuring the machine takes a part, is too short for
                any of the calls; it says which one is not.
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
        """Name -> implementation of what takes part, with a weight that is packed before."""
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
        """The op's small cases, once a backend, then the call itself."""
        is_reference = name == "reference"
        try:
            if not is_reference:
                ok, note = check_small_cases(case.op, name, case.device, case.dtype)
                if not ok:
                    return ok, note
            approximate = load_backend(case.op, name).approximate
            return judge.check(run, is_reference=is_reference, approximate=approximate)
        except Exception as error:  # whatever a backend fails with: it is red, the others go on
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
