"""Runs the parts of ``make gpu-report`` on simulated GPUs; test_gpu_rehearsal.py starts it.

python tests/gpu_rehearsal.py benchmarks FOLDER OP=BACKEND,...
"""

import importlib
import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist

from livetalk_kernels.bench import comm, cuda_timer, roofline
from livetalk_kernels.registry import load_op
from livetalk_kernels.runtime.ranks import launch
from livetalk_kernels.spec import Case
from livetalk_kernels.testing import fake_nvml
from livetalk_kernels.testing.fake_cuda import FakeCuda
from livetalk_model.cli.main import main

FOLDER = Path(sys.argv[2])
SMALL = ("--preset", "tiny", "--size", "16x16")
codes: dict[str, Any] = {}
seconds: dict[str, float] = {}


def note(name: str, call: Callable[[], object]) -> None:
    """Keep a part's exit code or error, and its processor time with that of its ranks."""
    begin = os.times()
    try:
        codes[name] = call()
    except Exception:
        codes[name] = traceback.format_exc()
    seconds[name] = sum(os.times()[:4]) - sum(begin[:4])


def script(part: str, words: Sequence[str]) -> int:
    """Load one of the benchmarks."""
    sys.argv = [part, *words]
    code: int = importlib.import_module(part).main()
    return code


def run(name: str, *words: str, part: str | None = None) -> None:
    """Run a script as a part with a result."""
    given = ["--device", "cuda", *words, "--json", str(FOLDER / f"{name}.json")]
    note(name, lambda: script(part or name, given))


def started(gpus: FakeCuda, count: int, call: Callable[[], int]) -> int:
    """Call it on several ranks as torchrun would, but forked, so that nothing is imported again."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "GROUP_RANK": 0,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port, "TORCHELASTIC_RUN_ID": "rehearsal",
        "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0,
    }  # fmt: skip
    ranks = []
    sys.stdout.flush()
    for rank in range(count):
        process = os.fork()
        if process:
            ranks.append(process)
            continue
        code = 1
        try:
            if count > 1:
                own = common | {"RANK": rank, "LOCAL_RANK": rank}
                os.environ.update({name: str(value) for name, value in own.items()})
            gpus.calls.clear()
            code = call()
            calls = FOLDER / "calls" / f"{os.getpid()}.json"
            calls.write_text(json.dumps(gpus.calls))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return max(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in ranks)


class Stream:
    """Stands in for the process that `scaling` starts: stream.py with ``--ranks``."""

    def __init__(self, gpus: FakeCuda, command: Sequence[str]) -> None:
        count = int(command[command.index("--ranks") + 1])
        self.code = started(gpus, count, partial(script, "stream", command[2:]))

    def wait(self, timeout: float | None = None) -> int:
        return self.code


def several_ranks() -> None:
    """``scaling`` and ``comm``, on two GPUs."""
    with FakeCuda(2) as gpus:
        fake: Any = SimpleNamespace(Popen=partial(Stream, gpus), TimeoutExpired=TimeoutError)
        importlib.import_module("scaling").subprocess = fake

        def launched(arguments: Sequence[str], *, nproc: int, left: str = "") -> int:
            return started(gpus, nproc, lambda: main(list(arguments[2:])))

        launch.launch = launched
        run("scaling", *SMALL, "--layers", "1", "--chunks", "2", "--ranks", "1", "2")
        result = str(FOLDER / "comm.json")
        note("comm", lambda: main(
            ["bench", "comm", "--nproc", "2", "--device", "cuda", "--preset", "tiny",
             "--rounds", "3", "--json", result]
        ))  # fmt: skip


def one_case(op: str, device: Any, dtype: Any) -> list[Case]:
    """Replace the cases of `ops_all`, which take hours on a CPU."""
    spec = load_op(op)
    small = [case for case in spec.cases(device, dtype) if not case.large]
    return [max(small, key=lambda case: spec.cost(case).flops)]


def one_gpu(excluded: str) -> dict[str, Any]:
    """All other parts; returns what `facts` finds, and how often the GPU was called."""
    with FakeCuda() as gpu:
        facts = importlib.import_module("gpu_report.facts").gather()
        run("smoke", "--seconds", "200")
        os.environ["LIVETALK_EXCLUDE"] = excluded
        once = (*SMALL, "--rounds", "1")
        run("step", *once, "--layers", "1", "--precision", "both", "--no-compile")
        importlib.import_module("ops_all").select_cases = one_case
        run("ops_all", "--no-compile", "--rounds", "1")
        run("vae", *once, "--no-compile")
        run("graphs", *once, "--layers", "1")
        few = (*SMALL, "--layers", "1", "--chunks", "2")
        run("chunk", *few, "--cuda-graphs", part="stream")
        run("chunk-fp8", *few, "--precision", "fp8", part="stream")
        note("profile", lambda: main(
            ["profile", *SMALL, "--device", "cuda", "--chunks", "1", "--warmup", "1",
             "--no-video", "--cuda-graphs", "--output", str(FOLDER / "profile")]
        ))  # fmt: skip
        note("bench", lambda: main(
            ["bench", "rms_norm", "--shape", "L=4,D=32", "--device", "cuda", "--no-compile",
             "--rounds", "3"]
        ))  # fmt: skip
        return {"facts": facts, "calls": gpu.calls}


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    names = sys.argv[3]
    sys.modules["pynvml"] = fake_nvml
    # A GPU's take a CPU minutes.
    roofline.GEMM_SIZE["cuda"], roofline.GPU_BUFFER = 64, 1 << 16
    cuda_timer.WARM_SECONDS["cuda"], cuda_timer.MAX_CALLS, cuda_timer.PROFILED_CALLS = 0.0, 2, 1
    comm.LINK_SIZES["cuda"] = (1 << 10, 1 << 12)
    (FOLDER / "calls").mkdir()
    os.environ["LIVETALK_EXCLUDE"] = names  # Triton's interpreter is slow
    several_ranks()
    del os.environ["LIVETALK_EXCLUDE"]
    every = one_gpu(names)
    calls = [Counter(json.loads(file.read_text())) for file in (FOLDER / "calls").iterdir()]
    every["ranks"] = sum(calls, Counter())
    value = {**every, "codes": codes, "seconds": seconds}
    (FOLDER / "all.json").write_text(json.dumps(value))
