"""End-to-end suites for pytest-benchmark: a chunk, start-up, the VAE, one and two ranks.

    pytest benchmarks/e2e --preset tiny --benchmark-json before.json
    pytest benchmarks/e2e --preset tiny --baseline before.json

The first line saves a baseline, the second compares with it: the session fails, with exit code 1
and a line for each, if a benchmark has become slower and noise does not explain it. Every benchmark
is checked before it is timed; what is wrong is not timed.

``--preset --device --dtype`` say what runs, as in ``livetalk``; ``--rounds`` how often. Only a
baseline of the same three can be compared. One of another machine is refused, unless
``--baseline-any-machine`` is given.

The two sessions are apart in time, and a shared machine drifts by 5 to 20 % within minutes. So a
fixed matrix product, the *probe*, is timed before each round. A regression must exceed noise and
``--baseline-tolerance`` (5 %) both in itself and relative to the probe. To examine a change
further, let both sides alternate: ``livetalk profile --compare``.
"""

import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from baseline import Baseline, Comparison, Run, sentence
from probe import make_probe

from livetalk_kernels.bench.compare import DRIFT, MIN_SAMPLES
from livetalk_kernels.errors import UserError
from livetalk_kernels.machine import machine
from livetalk_kernels.precision import dtype_name
from livetalk_model.avatar import Avatar
from livetalk_model.loading import ModelSource
from livetalk_model.media.synthetic import picture
from livetalk_model.pipeline import Pipeline

sys.path.append(str(Path(__file__).resolve().parent.parent))  # modules that scripts share

WARM = 2  # rounds that do not count
Prepare = Callable[[], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add options for what runs, and what to compare it with."""
    group = parser.getgroup("livetalk end to end")
    group.addoption("--preset", default="tiny", help="tiny, mid, small or 14b (random weights)")
    group.addoption("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    group.addoption("--dtype", default="auto", help="fp32, bf16 or auto")
    group.addoption("--rounds", type=int, default=20, help=f"{MIN_SAMPLES} or more (default: 20)")
    group.addoption(
        "--baseline",
        type=Path,
        metavar="FILE.json",
        help="fail on a regression against a file written by --benchmark-json",
    )
    group.addoption(
        "--baseline-tolerance",
        type=float,
        default=DRIFT,
        metavar="SHARE",
        help=f"ignore changes up to this (default: {DRIFT})",
    )
    group.addoption(
        "--baseline-any-machine",
        action="store_true",
        help="also compare with a baseline from other hardware",
    )


class Setup:
    """What runs, and on what; loaded on first use."""

    def __init__(self, config: pytest.Config) -> None:
        """Resolve the options.

        Raises:
            UserError: One is invalid.
        """
        self.words = {name: config.getoption(name) for name in ("preset", "device", "dtype")}
        self.rounds: int = config.getoption("rounds")
        if self.rounds < MIN_SAMPLES:
            raise UserError(f"--rounds {self.rounds}: must be {MIN_SAMPLES} or more")
        self.source = ModelSource.find(
            **self.words, checkpoint=None, audio_encoder=None, backend=None, reuse=True
        )
        self.settings = {
            "preset": self.source.preset,
            "device": str(self.source.device),
            "dtype": dtype_name(self.source.dtype),
        }
        self.machine = machine()

    @cached_property
    def pipeline(self) -> Pipeline:
        """The model, with random weights."""
        return self.source.load_pipeline(self.source.load_preparer())

    def unload(self) -> None:
        """Free the model; it is reloaded on the next use."""
        vars(self).pop("pipeline", None)
        vars(self).pop("avatar", None)
        if self.source.device.type == "cuda":
            torch.cuda.empty_cache()

    @cached_property
    def avatar(self) -> Avatar:
        """An avatar made from a smooth picture."""
        size = self.pipeline.preparer.size
        return self.pipeline.prepare(picture(size), size=size)

    @cached_property
    def probe(self) -> Callable[[], float]:
        """Function that times a fixed matrix product."""
        return make_probe(self.source.device)


SETUP = pytest.StashKey[Setup]()
RUNS = pytest.StashKey[list[Run]]()
BASELINE = pytest.StashKey[Baseline]()
FOUND = pytest.StashKey[list[Comparison]]()


@pytest.fixture(scope="session")
def setup(request: pytest.FixtureRequest) -> Setup:
    """Return what runs."""
    found = request.config.stash.get(SETUP, None)
    if found is None:  # pytest found this file too late for its options
        pytest.skip("end-to-end suites run with 'pytest benchmarks/e2e'")
    return found


@pytest.fixture
def measure(benchmark: Any, setup: Setup, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Return a timer: ``measure(run, group=..., prepare=..., warm=2)``, which waits for completion.

    ``prepare`` is called before each round, outside of its time.
    """

    def measured(
        run: Callable[[], Any],
        *,
        group: str,
        prepare: Prepare | None = None,
        warm: int = WARM,
    ) -> None:
        probes: list[float] = []

        def before() -> None:
            if prepare is not None:
                prepare()
            probes.append(setup.probe())

        benchmark.group = group
        benchmark.extra_info.update(settings=setup.settings, machine=setup.machine)
        benchmark.pedantic(run, setup=before, rounds=setup.rounds, warmup_rounds=warm)
        if benchmark.stats is not None:  # None with --benchmark-disable
            benchmark.extra_info["probe"] = probes[-setup.rounds :]
            request.config.stash[RUNS].append(
                Run(
                    name=request.node.nodeid.rpartition("/")[2],
                    seconds=tuple(benchmark.stats.stats.data),
                    probe=tuple(benchmark.extra_info["probe"]),
                )
            )

    return measured


def pytest_sessionstart(session: pytest.Session) -> None:
    """Reject invalid options and baselines before anything is loaded."""
    config = session.config
    config.stash[RUNS] = []
    try:
        setup = config.stash[SETUP] = Setup(config)
        path = config.getoption("baseline")
        if path is not None:
            baseline = Baseline.load(path)
            any_machine = config.getoption("baseline_any_machine")
            baseline.require(setup.settings, setup.machine, any_machine=any_machine)
            config.stash[BASELINE] = baseline
    except UserError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Compare; fail the session on a regression."""
    baseline = session.config.stash.get(BASELINE, None)
    if baseline is None:
        return
    tolerance = session.config.getoption("baseline_tolerance")
    runs = session.config.stash[RUNS]
    found = baseline.compare(runs, tolerance)
    session.config.stash[FOUND] = found
    if any(entry.verdict == "slower" for entry in found) and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print a line per benchmark."""
    baseline = config.stash.get(BASELINE, None)
    if baseline is None:
        return
    terminalreporter.section(f"against {baseline.path}")
    for line in baseline.remarks:
        terminalreporter.write_line(line)
    found = config.stash.get(FOUND, [])
    for entry in found:
        terminalreporter.write_line(sentence(entry), red=entry.verdict == "slower")
    if not found:
        terminalreporter.write_line("nothing was timed, so nothing was compared")
