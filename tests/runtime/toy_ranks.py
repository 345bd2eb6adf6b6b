"""Ranks with the phases of a real run: ``toy_ranks.py FOLDER FAULT SECONDS WORLD``.

Started alone it launches the ranks of itself; under torchrun it is one of them. FAULT is empty or
KIND:RANK:PHASE with KIND error, user, late (a user's error in a rank that is slow to continue once
it has told the others), hang or child, and RANK -1 for all; each phase lasts SECONDS.
"""

import subprocess
import sys
import time
from pathlib import Path

from livetalk_kernels.environment import Ranks
from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.ranks.launch import launch

PHASES = ("load", "prepare", "denoise", "decode", "write")


def rank_main(ranks: Ranks, folder: Path, fault: str, seconds: float) -> None:
    """Walk through the phases; in each, ranks add numbers up until the time is over."""
    import torch

    from livetalk_kernels.runtime.process_group import joined
    from livetalk_kernels.runtime.ranks.heartbeat import Deadlines
    from livetalk_kernels.runtime.ranks.watchdog import Watchdog

    kind, victim, place = (fault or "::").split(":")
    part, whole = folder / "video.part", folder / "video"
    file = part.open("w") if ranks.rank == 0 else None
    deadlines = Deadlines(decode=2.0)

    def keep() -> None:
        if file is not None:
            file.close()
            part.rename(folder / "kept")

    with (
        Watchdog(ranks, deadlines=deadlines, on_failure=keep) as watchdog,
        joined(torch.device("cpu")) as (world, _),
    ):
        try:
            for phase in PHASES:
                with watchdog.phase(phase):
                    end = time.monotonic() + seconds
                    while True:
                        if place == phase and victim in (str(ranks.rank), "-1"):
                            fail(kind)
                        done = torch.tensor([float(ranks.rank == 0 and time.monotonic() > end)])
                        world.all_reduce(done, "max")
                        if file is not None:
                            print(phase, file=file, flush=True)
                        time.sleep(0.01)
                        if done.item():
                            break
        except KeyboardInterrupt:
            keep()
            raise
    if file is not None:
        file.close()
        part.rename(whole)


def fail(kind: str) -> None:
    if kind == "error":
        raise RuntimeError("a bug")
    if kind == "late":
        be_slow_after_the_claim()
    if kind in ("user", "late"):
        raise UserError("bad file; take another one")
    if kind == "hang":
        time.sleep(1000)
    if kind == "child":  # one that would outlive a rank that is killed
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        time.sleep(1000)


def be_slow_after_the_claim() -> None:
    from livetalk_kernels.runtime.ranks.heartbeat import Board, Verdict

    claim = Board.claim

    def slow(board: Board, verdict: Verdict) -> Verdict:
        accepted = claim(board, verdict)
        time.sleep(1.5)
        return accepted

    Board.claim = slow  # type: ignore[method-assign]


def main() -> int:
    folder, fault, seconds, world = sys.argv[1:]
    ranks = Ranks.from_environ()
    if ranks is None:
        return launch([__file__, *sys.argv[1:]], nproc=int(world), left="video.part is left")
    try:
        rank_main(ranks, Path(folder), fault, float(seconds))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
