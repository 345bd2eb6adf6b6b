"""A training on two ranks for ever, to be killed or stopped. Arguments: the folder."""

import sys
from contextlib import ExitStack
from pathlib import Path

import torch


def main() -> int:
    from livetalk_kernels.environment import Ranks
    from livetalk_kernels.runtime.ranks.launch import launch

    ranks = Ranks.from_environ()
    if ranks is None:
        return launch(sys.argv, nproc=2, grace=60)
    torch.set_num_threads(1)
    from train_ranks import teach, teacher_state

    from livetalk_kernels.runtime.process_group import joined
    from livetalk_kernels.runtime.ranks.heartbeat import Deadlines
    from livetalk_kernels.runtime.ranks.watchdog import Watchdog
    from livetalk_model.cli.interrupts import Wish

    folder = Path(sys.argv[1])
    with Watchdog(ranks, deadlines=Deadlines(), patience=60) as watchdog:
        with ExitStack() as stack:
            _, control = stack.enter_context(joined(torch.device("cpu")))
            asked = stack.enter_context(Wish("", "")) if ranks.rank == 0 else (lambda: False)
            state = teacher_state(control)
            with watchdog.phase("load"):
                teach(control, state, folder, steps=2)
            teach(control, state, folder, steps=100_000, phase=watchdog.phase, asked=asked)
        watchdog.code = 130 if ranks.rank == 0 else 0
    return watchdog.code


if __name__ == "__main__":
    raise SystemExit(main())
