"""Copies to the host that overlap the GPU's work, through a few pinned buffers."""

from collections import deque

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .timeline import Timeline

COPIES = "copies"
"""Name of the copies' lane in the timeline."""

Array = NDArray[np.generic]


class HostRing:
    """Copies tensors to the host, with up to ``ahead`` + 1 transfers in flight.

    On a GPU a dedicated stream copies each transfer into its slot of pinned memory, and an event
    signals completion. On a CPU the slots are plain memory, and with ``ahead`` 0 nothing is copied.

    Attributes:
        ahead: How many transfers may be in flight without the caller waiting for any.
    """

    def __init__(
        self, device: torch.device, *, ahead: int | None = None, timeline: Timeline | None = None
    ) -> None:
        """Prepare; no memory is allocated yet.

        Args:
            device: Device of the tensors.
            ahead: By default 1 on a GPU, which computes meanwhile, and 0 on a CPU, where everything
                has been computed by then.
            timeline: Records a GPU's copies.
        """
        self._cuda = device if device.type == "cuda" else None
        self.ahead = (0 if self._cuda is None else 1) if ahead is None else ahead
        self._timeline = timeline or Timeline(device)
        self._stream = None if self._cuda is None else torch.cuda.Stream(self._cuda)
        self._free = deque(_Slot(pinned=self._cuda is not None) for _ in range(self.ahead + 1))

    def send(self, *tensors: Tensor) -> "Transfer":
        """Start copying tensors that the current stream computes and nothing modifies afterwards.

        At most ``ahead`` earlier transfers may be unreceived.
        """
        if self._stream is None:
            if not self.ahead:
                return Transfer(list(tensors), None, self._free)
            slot = self._free.popleft()
            return Transfer(slot.take(tensors), slot, self._free)
        slot = self._free.popleft()
        dense = [tensor.contiguous() for tensor in tensors]
        self._stream.wait_stream(torch.cuda.current_stream(self._cuda))
        with torch.cuda.stream(self._stream), self._timeline.range("copy", COPIES):
            buffers = slot.take(dense)
            slot.event.record(self._stream)
        for tensor in dense:
            tensor.record_stream(self._stream)  # keeps its memory until it is copied
        return Transfer(buffers, slot, self._free)


class Transfer:
    """Tensors in flight to the host."""

    def __init__(self, buffers: list[Tensor], slot: "_Slot | None", free: "deque[_Slot]") -> None:
        """Own ``slot`` until the buffers have been read; then return it to ``free``."""
        self._buffers, self._slot, self._free = buffers, slot, free

    def arrays(self) -> list[Array]:
        """Wait for the tensors, once; return arrays that the caller owns."""
        if self._slot is None:
            return [buffer.numpy() for buffer in self._buffers]
        self._slot.wait()
        arrays = [buffer.numpy().copy() for buffer in self._buffers]
        self._free.append(self._slot)
        self._buffers = []
        return arrays


class _Slot:
    """Memory for one transfer, as large as the largest so far."""

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned
        self._memory: list[Tensor] = []
        if pinned:
            self.event = torch.cuda.Event()

    def take(self, tensors: "list[Tensor] | tuple[Tensor, ...]") -> list[Tensor]:
        """Copy tensors into this slot; return contiguous tensors with their shapes and dtypes."""
        buffers = []
        for index, tensor in enumerate(tensors):
            size = tensor.numel() * tensor.element_size()
            if index == len(self._memory):
                self._memory.append(torch.empty(0, dtype=torch.uint8))
            if self._memory[index].numel() < size:
                self._memory[index] = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
            buffer = self._memory[index][:size].view(tensor.dtype).view(tensor.shape)
            buffers.append(buffer.copy_(tensor, non_blocking=self._pinned))
        return buffers

    def wait(self) -> None:
        """Wait until the copies have arrived."""
        if self._pinned:
            self.event.synchronize()
