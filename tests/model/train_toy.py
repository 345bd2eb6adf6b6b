"""A training on two ranks for ever, to be killed. Arguments: the folder."""

import sys
from pathlib import Path

import torch


def main() -> None:
    from livetalk_kernels.config import Ranks
    from livetalk_kernels.runtime.launch import launch

    ranks = Ranks.from_environ()
    if ranks is None:
        raise SystemExit(launch(sys.argv, nproc=2))
    torch.set_num_threads(1)
    from train_ranks import teach, teacher_state

    from livetalk_kernels.runtime.beat import Deadlines
    from livetalk_kernels.runtime.process_group import joined
    from livetalk_kernels.runtime.watchdog import Watchdog

    with Watchdog(ranks, deadlines=Deadlines()) as watchdog, joined(torch.device("cpu")) as comms:
        state = teacher_state(comms[1])

        with watchdog.phase("load"):
            teach(comms[1], state, Path(sys.argv[1]), steps=2)
        teach(comms[1], state, Path(sys.argv[1]), steps=100_000, phase=watchdog.phase)


if __name__ == "__main__":
    main()
