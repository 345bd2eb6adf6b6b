"""What ranks tell each other about themselves, through the store that torchrun keeps for them."""

import json
import os
import socket
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from pathlib import Path

from torch.distributed import Store, TCPStore

from ...environment import Ranks
from ...errors import UserError
from ...machine import boot_id

CONNECT = timedelta(seconds=60)


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Seconds that each phase may last; infinity: as long as it likes. Validates itself.

    The values are for a GPU. Re-entering a phase restarts its clock, so ``denoise`` and ``decode``
    are for one step each.

    Attributes:
        start: From the first rank's start until all have arrived, and until the first phase.
        load: Reading the weights.
        prepare: Everything about the avatar.
        wait: For sound, which may come live.
        audio: Encoding the sound of a chunk.
        denoise: One step of the sampler; the first one compiles kernels and captures a graph, as
            do the first of ``decode`` and ``encode``.
        decode: One step of the VAE's decoder.
        encode: The motion frames of a chunk.
        write: Frames of a chunk into the video.
        finish: The end of the video, and leaving.
        update: One update of a training.
        save: A checkpoint of a training.
        other: Whatever is in no phase.

    Raises:
        UserError: A deadline is not positive.
    """

    start: float = 300.0
    load: float = 1800.0
    prepare: float = 900.0
    wait: float = float("inf")
    audio: float = 60.0
    denoise: float = 300.0
    decode: float = 300.0
    encode: float = 300.0
    write: float = 60.0
    finish: float = 120.0
    update: float = 1800.0
    save: float = 1800.0
    other: float = 300.0

    def __post_init__(self) -> None:
        """Check that all are positive."""
        for name, seconds in asdict(self).items():
            if not seconds > 0:  # nor NaN
                raise UserError(f"--deadline {name}={seconds:g}: must be more than 0 seconds")

    def scaled(self, factor: float) -> "Deadlines":
        """All deadlines so many times as long, for a slower device (a CPU: 20)."""
        return Deadlines(**{name: seconds * factor for name, seconds in asdict(self).items()})

    def with_choices(self, choices: Iterable[str]) -> "Deadlines":
        """Read ``--deadline PHASE=SECONDS``; a later one wins.

        Args:
            choices: For example ``["load=3600", "wait=600", "denoise=inf"]``.

        Raises:
            UserError: Bad syntax, an unknown phase, or not a positive number.
        """
        names = [field.name for field in fields(self)]
        chosen: dict[str, float] = {}
        for choice in choices:
            name, _, seconds = choice.partition("=")
            if name not in names:
                raise UserError(
                    f"--deadline {choice}: there is no phase {name}; phases are {', '.join(names)}"
                )
            try:
                chosen[name] = float(seconds)
            except ValueError:
                raise UserError(f"--deadline {choice}: write PHASE=SECONDS") from None
        return replace(self, **chosen)

    def of(self, phase: str) -> float:
        """Seconds for a phase; it must be one of the attributes."""
        seconds: float = getattr(self, phase)
        return seconds


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A sign of life.

    Attributes:
        number: Counts up.
        phase: What the rank is at.
        seconds: Since when, by the rank's own clock.
        talking: Its main thread is inside a communication, so others may be what it waits for.
        asked: It got a signal that asks the whole run to stop.
        finished: It has ended well and is about to leave.
        pid: Of the process.
        born: When the process started, to tell it from a later one of the same pid.
        host: Name of the machine, for people.
        machine: The same for two processes exactly if they see each other's pids.
    """

    number: int
    phase: str
    seconds: float
    talking: bool = False
    asked: bool = False
    finished: bool = False
    pid: int
    born: int
    host: str
    machine: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Why the run has failed; the first one counts, for all ranks.

    Attributes:
        rank: The one to blame; -1 for the launcher.
        line: For the user, beginning with ``error:``.
        code: Exit code of every rank.
        kill: The rank cannot end by itself.
        printed_on: The machine on which the rank prints it itself, with its traceback; empty where
            it cannot.
    """

    rank: int
    line: str
    code: int = 1
    kill: bool = False
    printed_on: str = ""


class Board:
    """The ranks' part of the store. A client of its own, to be used by one thread."""

    def __init__(self, ranks: Ranks) -> None:
        """Connect.

        Raises:
            RuntimeError: The store does not answer.
        """
        self._prefix = f"livetalk/{ranks.run}/"
        self._world = ranks.world
        self._arrived: list[int] = []
        self._store: Store = TCPStore(
            ranks.address,
            ranks.port,
            is_master=ranks.rank == 0 and not ranks.agent_store,
            wait_for_workers=False,
            multi_tenant=True,  # beside the one of torch.distributed, where rank 0 is the host
            timeout=CONNECT,
        )

    def publish(self, rank: int, beat: Beat) -> None:
        """Show a rank's beat to all."""
        self._store.set(f"{self._prefix}beat/{rank}", json.dumps(asdict(beat)))

    def beats(self) -> dict[int, Beat]:
        """The latest beat of every rank that has arrived."""
        for rank in set(range(self._world)) - set(self._arrived):
            if self._store.check([f"{self._prefix}beat/{rank}"]):
                self._arrived.append(rank)
        if not self._arrived:
            return {}
        texts = self._store.multi_get([f"{self._prefix}beat/{rank}" for rank in self._arrived])
        return {
            rank: Beat(**json.loads(text)) for rank, text in zip(self._arrived, texts, strict=True)
        }

    def claim(self, verdict: Verdict) -> Verdict:
        """Name the cause of a failure; the verdict that counts, which may be an earlier one."""
        text = self._store.compare_set(f"{self._prefix}verdict", "", json.dumps(asdict(verdict)))
        return Verdict(**json.loads(text))

    def verdict(self) -> Verdict | None:
        """The verdict, if there is one."""
        key = f"{self._prefix}verdict"
        return Verdict(**json.loads(self._store.get(key))) if self._store.check([key]) else None

    def first(self, machine: str) -> bool:
        """Whether nobody on this machine has asked this before: who is first prints."""
        return self._store.add(f"{self._prefix}printed/{machine}", 1) == 1

    def stop(self) -> None:
        """Rank 0 goes, and the others need not stay."""
        self._store.set(f"{self._prefix}stop", "1")

    def stopped(self) -> bool:
        """Whether rank 0 has said stop."""
        return self._store.check([f"{self._prefix}stop"])


def process_state(pid: int) -> tuple[str, int] | None:
    """State letter of ``/proc`` and start time; None if there is no such process (or no /proc)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    words = text.rpartition(")")[2].split()  # the name before it may hold anything
    return words[0], int(words[19])


def first_beat() -> Beat:
    """This process, before it has begun."""
    host = socket.gethostname()
    state = process_state(os.getpid())
    try:
        machine = f"{boot_id()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux: nobody sees a neighbour's process, and silence tells
        machine = f"{host}/{os.getpid()}"
    born = state[1] if state else 0
    return Beat(
        number=0,
        phase="start",
        seconds=0.0,
        pid=os.getpid(),
        born=born,
        host=host,
        machine=machine,
    )
