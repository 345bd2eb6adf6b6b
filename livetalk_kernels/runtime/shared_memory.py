"""Small messages between ranks on one machine, through shared memory.

gloo sends them through the loopback interface: system calls, copies in the kernel, and a thread
that takes a core from the computation each time. Here a message is copied into a ring buffer and
out of it, both by the ranks' own threads. For CPU tensors; Linux on x86-64, where other cores see
stores in program order.

A ring is anonymous memory of the receiver, which is freed with its process however that ends; the
sender opens it through the receiver's process id and file descriptor.
"""

import mmap
import os
import platform
import time
import zlib
from collections import deque
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import CommError
from ..machine import cpus
from .ranks.heartbeat import first_beat, process_state

CAPACITY = 2 << 20
"""Bytes per ring."""
LARGEST = CAPACITY // 2
"""Bytes of the largest message; larger ones would not benefit."""
_HEADER = 128  # two counters, each on its own cache line
_SLOT = _HEADER + CAPACITY
_SPIN = 1e-3  # seconds for which a rank with a core to itself spins
_PAUSE = 5e-5
_LOOK = 1.0  # seconds between checks that the others are alive

Messages = Iterable[tuple[int, Tensor]]


class _Ring:
    """Bytes in flight from one rank to another: one of them writes, the other reads."""

    def __init__(self, memory: mmap.mmap, slot: int) -> None:
        start = slot * _SLOT
        counters = np.frombuffer(memory, np.int64, _HEADER // 8, start)
        self._written, self._read = counters[:1], counters[_HEADER // 16 :][:1]
        with torch.inference_mode(False):  # it is written both in and outside that mode
            self._bytes = torch.frombuffer(
                memory, dtype=torch.uint8, count=CAPACITY, offset=start + _HEADER
            )

    def write(self, message: Tensor) -> bool:
        """Write a whole message if there is room; return whether there was."""
        written = int(self._written[0])
        if CAPACITY - (written - int(self._read[0])) < len(message):
            return False
        for part, place in self._parts(message, written):
            place.copy_(part)
        self._written[0] = written + len(message)  # after its bytes
        return True

    def read(self, message: Tensor) -> bool:
        """Read a whole message if it is there; return whether it was."""
        read = int(self._read[0])
        if int(self._written[0]) - read < len(message):
            return False
        for part, place in self._parts(message, read):
            part.copy_(place)
        self._read[0] = read + len(message)
        return True

    def _parts(self, message: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
        """Return the pieces of a message and their places: two if it wraps around the end."""
        start = count % CAPACITY
        first = min(len(message), CAPACITY - start)
        parts = [(message[:first], self._bytes[start : start + first])]
        if first < len(message):
            parts.append((message[first:], self._bytes[: len(message) - first]))
        return parts


class Delivery:
    """Messages in flight."""

    def __init__(self, mailboxes: "Mailboxes", left: int) -> None:
        """Start with ``left`` messages in flight."""
        self._mailboxes, self.left = mailboxes, left

    def wait(self) -> None:
        """Wait until all are sent and received.

        Raises:
            CommError: A rank is gone.
        """
        self._mailboxes.wait(self)


_Queue = deque[tuple[Delivery, Tensor]]


class Mailboxes:
    """This rank's rings to and from the others of a group; for use by one thread."""

    def __init__(self, group: dist.ProcessGroup, pids: list[int], files: list[int]) -> None:
        """Map everyone's memory; use `open` instead."""
        self._rank, size = dist.get_rank(group), dist.get_world_size(group)
        self._pids = {peer: pid for peer, pid in enumerate(pids) if peer != self._rank}
        self._outgoing: dict[int, tuple[_Ring, _Queue]] = {}
        self._incoming: dict[int, tuple[_Ring, _Queue]] = {}
        own = mmap.mmap(files[self._rank], size * _SLOT)
        for peer, pid in self._pids.items():
            file = os.open(f"/proc/{pid}/fd/{files[peer]}", os.O_RDWR)
            theirs = mmap.mmap(file, size * _SLOT)
            os.close(file)
            self._incoming[peer] = (_Ring(own, peer), deque())
            self._outgoing[peer] = (_Ring(theirs, self._rank), deque())
        self._spin = _SPIN if dist.get_world_size() <= cpus().usable else 0.0

    @classmethod
    def open(cls, group: dist.ProcessGroup) -> "Mailboxes | None":
        """Open the mailboxes of a group; None, on all ranks, unless all can have them.

        All ranks of the group must call it together.
        """
        size = dist.get_world_size(group)
        fits = platform.machine() in ("x86_64", "AMD64") and hasattr(os, "memfd_create")
        file = os.memfd_create("livetalk") if fits else -1
        if fits:
            os.ftruncate(file, size * _SLOT)  # pages are allocated on first write
        machine = zlib.crc32(first_beat().machine.encode())
        everyone = torch.zeros(3, size, dtype=torch.int64)
        everyone[:, dist.get_rank(group)] = torch.tensor([os.getpid(), file, machine])
        dist.all_reduce(everyone, group=group)
        pids, files, machines = everyone.tolist()
        mailboxes: Mailboxes | None = None
        if min(files) >= 0 and len(set(machines)) == 1:
            with suppress(OSError):  # the kernel may not permit it
                mailboxes = cls(group, pids, files)
        agreed = torch.tensor([mailboxes is not None], dtype=torch.int32)
        dist.all_reduce(agreed, dist.ReduceOp.MIN, group)  # by now all have opened theirs
        if file >= 0:
            os.close(file)
        return mailboxes if agreed else None

    def exchange(self, send: Messages, receive: Messages) -> Delivery:
        """Start sending and receiving; messages between two ranks keep their order."""
        delivery = Delivery(self, 0)
        for messages, boxes in ((receive, self._incoming), (send, self._outgoing)):
            for peer, tensor in messages:
                boxes[peer][1].append((delivery, tensor.view(-1).view(torch.uint8)))
                delivery.left += 1
        self._move()
        return delivery

    def wait(self, delivery: Delivery) -> None:
        """See `Delivery.wait`."""
        begin = time.monotonic()
        look = begin + _LOOK
        while delivery.left:
            if self._move():
                continue
            now = time.monotonic()
            if now > look:
                self._require_all()
                look = now + _LOOK
            if now - begin > self._spin:
                time.sleep(_PAUSE)

    def _move(self) -> bool:
        """Transfer what is ready; return whether anything was."""
        moved = False
        for ring, queue in self._outgoing.values():
            while queue and ring.write(queue[0][1]):
                queue.popleft()[0].left -= 1
                moved = True
        for ring, queue in self._incoming.values():
            while queue and ring.read(queue[0][1]):
                queue.popleft()[0].left -= 1
                moved = True
        return moved

    def _require_all(self) -> None:
        """Raise if a rank is gone, since waiting for it would be in vain."""
        for peer, pid in self._pids.items():
            state = process_state(pid)
            if state is None or state[0] in "ZXx":
                raise CommError(f"rank {peer} of the group is gone (process {pid})")
