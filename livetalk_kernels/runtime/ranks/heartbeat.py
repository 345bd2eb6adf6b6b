"""Status that ranks publish to each other, through the store that torchrun provides."""

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
    """Maximum seconds per phase; infinity for no limit. Validates itself.

    The defaults are for a GPU. Re-entering a phase restarts its clock, so ``denoise`` and
    ``decode`` apply to one step each.

    Attributes:
        start: From the first rank's start until all have arrived and the first phase begins.
        load: Reading the weights.
        prepare: Everything concerning the avatar.
        wait: Waiting for sound, which may arrive live.
        audio: Encoding the sound of a chunk.
        denoise: One step of the sampler; the first one compiles kernels and captures a graph, as
            do the first ``decode`` and ``encode``.
        decode: One step of the VAE's decoder.
        encode: The motion frames of a chunk.
        write: Writing the frames of a chunk into the video.
        finish: Ending the video, and leaving.
        update: One training update.
        save: Writing a training checkpoint.
        other: Outside of any phase.

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
        """Multiply all deadlines by a factor, for a slower device (a CPU: 20)."""
        return Deadlines(**{name: seconds * factor for name, seconds in asdict(self).items()})

    def with_choices(self, choices: Iterable[str]) -> "Deadlines":
        """Parse ``--deadline PHASE=SECONDS``; later ones take precedence.

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
        """Return the seconds for a phase, which must be one of the attributes."""
        seconds: float = getattr(self, phase)
        return seconds


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A sign of life.

    Attributes:
        number: Counts up.
        phase: The phase that the rank is in.
        seconds: Time since it began, by the rank's own clock.
        talking: Whether its main thread is communicating, and so may be waiting for other ranks.
        asked: Whether it received a signal that asks the whole run to stop.
        finished: Whether it has ended normally and is about to leave.
        pid: Process id.
        born: Start time of the process, to distinguish it from a later one with the same pid.
        host: Host name, for display.
        machine: Equal for two processes exactly if they see each other's pids.
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
    """Why the run has failed; the first verdict counts, for all ranks.

    Attributes:
        rank: The rank at fault; -1 for the launcher.
        line: Message for the user, beginning with ``error:``.
        code: Exit code of every rank.
        kill: Whether the rank cannot end by itself.
        printed_on: The machine on which the rank prints it itself, with its traceback; empty if it
            cannot.
    """

    rank: int
    line: str
    code: int = 1
    kill: bool = False
    printed_on: str = ""


class Board:
    """The ranks' part of the store: a separate client, for use by one thread."""

    def __init__(self, ranks: Ranks) -> None:
        """Connect to the store.

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
            multi_tenant=True,  # shares the port with torch.distributed's, if rank 0 is the host
            timeout=CONNECT,
        )

    def publish(self, rank: int, beat: Beat) -> None:
        """Publish a rank's beat to all."""
        self._store.set(f"{self._prefix}beat/{rank}", json.dumps(asdict(beat)))

    def beats(self) -> dict[int, Beat]:
        """Read the latest beat of every rank that has arrived."""
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
        """Submit the cause of a failure; return the verdict that counts, perhaps an earlier one."""
        text = self._store.compare_set(f"{self._prefix}verdict", "", json.dumps(asdict(verdict)))
        return Verdict(**json.loads(text))

    def verdict(self) -> Verdict | None:
        """Read the verdict, if there is one."""
        key = f"{self._prefix}verdict"
        return Verdict(**json.loads(self._store.get(key))) if self._store.check([key]) else None

    def first(self, machine: str) -> bool:
        """Return whether this is the first call for a machine: the first caller prints."""
        return self._store.add(f"{self._prefix}printed/{machine}", 1) == 1

    def stop(self) -> None:
        """Announce that rank 0 is leaving, and the others need not stay."""
        self._store.set(f"{self._prefix}stop", "1")

    def stopped(self) -> bool:
        """Return whether rank 0 has announced that it is leaving."""
        return self._store.check([f"{self._prefix}stop"])


def process_state(pid: int) -> tuple[str, int] | None:
    """Read state letter and start time from ``/proc``; None without such a process (or /proc)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    words = text.rpartition(")")[2].split()  # the name before it may contain anything
    return words[0], int(words[19])


def first_beat() -> Beat:
    """Describe this process before it starts."""
    host = socket.gethostname()
    state = process_state(os.getpid())
    try:
        machine = f"{boot_id()}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux: nobody sees a neighbour's process, and silence is the only sign
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
