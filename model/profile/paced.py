"""A profile that makes its chunks one by one, at another process's request.

``livetalk profile --compare`` starts two such profiles and alternates between them. It communicates
with each through a socket: lines of text to the profile, lines of JSON back.

========== ==================================================================
to it      from it
========== ==================================================================
           it connects, once its options have been read and validated
``load``   ``{"ready": settings}``, once the model is loaded and warmed up
``go``     one chunk: ``{"seconds": s, "stages": {stage: {part: s}}, "unattributed": s}``
the end    it ends, with exit code 0
========== ==================================================================

Whoever waits for the other is blocked, so whoever works has the machine to itself. If either dies,
the other reads the end of the socket.
"""

import json
import math
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from livetalk_kernels.errors import UserError

from ..stream.stats import Phase, no_phase

POLL = 0.1  # seconds between checks whether a process that should connect has ended
ENDING = 30.0  # seconds that a process has to end once its socket is closed
INTERRUPTED = 10.0  # seconds that it has after Ctrl-C
TAIL = 12  # lines shown of a broken process's messages
BAD_INPUT = 2
_LOAD, _GO = b"load\n", b"go\n"
_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory")


class Pacer:
    """The profile's end; a context manager, to be entered before the model is loaded.

    On several ranks only rank 0 has one.
    """

    def __init__(self, path: str | Path, *, phase: Phase = no_phase) -> None:
        """Prepare; nothing happens until it is entered.

        Args:
            path: The socket.
            phase: Entered with ``wait`` while waiting for the other process, for a watchdog.
        """
        self._path, self._phase = str(path), phase

    def __enter__(self) -> Self:
        """Connect, and wait for permission to load.

        Raises:
            UserError: Nobody listens.
        """
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(self._path)
            self._lines = self._socket.makefile("rb")
            with self._phase("wait"):
                answer = self._lines.readline()
        except OSError:
            answer = b""
        if answer != _LOAD:
            self._socket.close()
            raise UserError(
                f"--paced {self._path}: nobody listens there; it is for 'livetalk profile "
                "--compare', which starts such a process by itself"
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the socket."""
        self._lines.close()
        self._socket.close()

    def ready(self, settings: Mapping[str, Any]) -> None:
        """Report that the model is warmed up, and the settings (as in the report)."""
        self._send({"ready": settings})

    def wait(self) -> bool:
        """Wait until a chunk is requested; return False if no more are."""
        try:
            with self._phase("wait"):
                return self._lines.readline() == _GO
        except ConnectionError:
            return False

    def report(self, chunk: Mapping[str, Any]) -> None:
        """Send the times of the chunk: ``seconds``, ``stages`` and ``unattributed``."""
        self._send({name: chunk[name] for name in ("seconds", "stages", "unattributed")})

    def _send(self, value: Mapping[str, Any]) -> None:
        line = json.dumps(value, allow_nan=False) + "\n"
        with suppress(ConnectionError):  # `wait` will notice
            self._socket.sendall(line.encode())


class WorkerError(Exception):
    """A profile's process failed; the message includes its last words."""


class Worker:
    """The other end: starts the process of a profile, and requests chunks from it."""

    def __init__(self, name: str, command: Sequence[str], folder: Path) -> None:
        """Prepare; nothing is started yet.

        Args:
            name: The user's name for it, for messages.
            command: Its arguments; the path of the socket is appended.
            folder: An empty folder for its socket and messages.
        """
        self.name = name
        self._command = list(command)
        self._words = folder / "messages"
        self._path = folder / "socket"
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Start the process, and wait until its options are validated.

        Raises:
            UserError: They are invalid.
            WorkerError: It has ended.
        """
        with socket.socket(socket.AF_UNIX) as listener, self._words.open("wb") as words:
            try:
                listener.bind(str(self._path))
            except OSError as error:
                raise UserError(
                    f"{self._path}: cannot be made ({error.strerror or error}); "
                    "set TMPDIR to another folder with a short name"
                ) from None
            listener.listen(1)
            listener.settimeout(POLL)
            self._process = subprocess.Popen(
                [*self._command, str(self._path)],
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                start_new_session=True,  # Ctrl-C is for us, and we forward it
            )
            while self._socket is None:
                try:
                    self._socket, _ = listener.accept()
                except TimeoutError:
                    if self._process.poll() is not None:
                        self._raise_lost()
        self._socket.settimeout(None)
        self._lines = self._socket.makefile("rb")

    def load(self) -> dict[str, Any]:
        """Let it load and warm up; return its settings.

        Raises:
            UserError: An option turned out to be invalid.
            WorkerError: It has ended, or sent an invalid answer.
        """
        settings = self._ask(_LOAD).get("ready")
        if not isinstance(settings, dict):
            raise WorkerError(f"{self.name}: has not said with which settings it is ready")
        return settings

    def chunk(self) -> dict[str, Any]:
        """Let it make a chunk; return its times in seconds.

        Raises:
            UserError: As `load`.
            WorkerError: As `load`.
        """
        answer = self._ask(_GO)
        try:
            stages = {
                str(stage): {str(part): float(value) for part, value in parts.items()}
                for stage, parts in answer["stages"].items()
            }
            seconds, rest = float(answer["seconds"]), float(answer["unattributed"])
            times = [seconds, rest, *(t for parts in stages.values() for t in parts.values())]
            if seconds <= 0 or not all(map(math.isfinite, times)):
                raise ValueError
        except (AttributeError, KeyError, TypeError, ValueError):
            raise WorkerError(f"{self.name}: {str(answer)[:80]} are not a chunk's times") from None
        return {"seconds": seconds, "stages": stages, "unattributed": rest}

    def close(self, *, interrupt: bool = False) -> None:
        """End the process and wait for that; closing twice is harmless.

        Args:
            interrupt: Stop it in the middle of its work, like Ctrl-C.
        """
        if self._socket is not None:
            self._lines.close()
            self._socket.close()
            self._socket = None
        process, self._process = self._process, None
        if process is None:
            return
        if interrupt and process.poll() is None:
            process.send_signal(signal.SIGINT)
        for limit in (INTERRUPTED if interrupt else ENDING, INTERRUPTED):
            with suppress(subprocess.TimeoutExpired):
                process.wait(limit)
                return
            process.send_signal(signal.SIGINT)  # to ranks: the second one kills them
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _ask(self, line: bytes) -> dict[str, Any]:
        """Send a line and wait for the answer."""
        assert self._socket is not None, "start() comes first"
        try:
            self._socket.sendall(line)
            answer = self._lines.readline()
        except ConnectionError:
            answer = b""
        if not answer.endswith(b"\n"):
            self._raise_lost()
        try:
            value = json.loads(answer)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            text = answer.decode(errors="replace").strip()[:80]
            raise WorkerError(f"{self.name}: talks nonsense: {text!r}")
        return value

    def _raise_lost(self) -> NoReturn:
        """Report that the process has closed the socket, or never opened it."""
        process = self._process
        assert process is not None
        try:
            code = process.wait(ENDING)
        except subprocess.TimeoutExpired:
            raise WorkerError(f"{self.name}: has closed its socket and does not end") from None
        text = self._words.read_text(errors="replace")
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        if code == BAD_INPUT and errors:
            raise UserError(f"{self.name}: {errors[-1]}")
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        advice = ""
        if code == -signal.SIGKILL or any(sign in text for sign in _MEMORY):
            advice = (
                "; if two models do not fit into the memory, profile them one after the other "
                "with --output and compare the two folders"
            )
        tail = "".join(f"\n  {line}" for line in lines[-TAIL:])
        raise WorkerError(f"{self.name}: {ended}{advice}{tail and ':'}{tail}")
