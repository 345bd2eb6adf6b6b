"""Substitutes gloo for NCCL in `fake_cuda`: ranks are separate processes.

As on GPUs, a group requested of NCCL accepts only contiguous tensors of this rank's GPU, and a
gloo group only those of the host; NCCL operations appear complete to the host at once.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from .fake_cuda import FakeCuda

NCCL, GLOO = "nccl", "gloo"
SECONDS = 1e-5  # per message, on the GPUs' clock
_SUM = dist.ReduceOp.SUM


class Sent:
    """`torch.distributed.Work` on a GPU: the stream waits, not the host."""

    def wait(self, timeout: Any = None) -> bool:
        """Return at once: it is complete."""
        return True


class FakeNccl:
    """Substitutes for functions of ``torch.distributed``.

    Attributes:
        groups: Groups requested of NCCL.
    """

    def __init__(self, gpus: "FakeCuda") -> None:
        """Start without groups."""
        self.groups: list[dist.ProcessGroup] = []
        self._gpus = gpus

    def replacements(self) -> dict[str, Callable[..., Any]]:
        """Map names below ``torch`` to substitutes with the same parameters."""
        names = (
            *("init_process_group", "new_group", "get_backend"),
            *("all_reduce", "broadcast", "batch_isend_irecv"),
        )
        self._real = {name: getattr(dist, name) for name in names}
        return {f"distributed.{name}": getattr(self, name) for name in names}

    def init_process_group(
        self,
        backend: str | None = None,
        init_method: str | None = None,
        timeout: Any = None,
        device_id: Any = None,
    ) -> None:
        """Join the world."""
        if backend == NCCL:
            assert device_id == torch.device("cuda", self._gpus.current), "else NCCL guesses a GPU"
        self._host("init_process_group", GLOO, init_method=init_method, timeout=timeout)
        if backend == NCCL:
            assert dist.group.WORLD is not None
            self.groups.append(dist.group.WORLD)

    def new_group(self, ranks: Any = None, timeout: Any = None, backend: str | None = None) -> Any:
        """Create a group, by default of the world's kind."""
        nccl = backend == NCCL or (backend is None and dist.group.WORLD in self.groups)
        group = self._host("new_group", ranks, timeout=timeout, backend=GLOO)
        if nccl and isinstance(group, dist.ProcessGroup):
            self.groups.append(group)
        return group

    def get_backend(self, group: Any = None) -> str:
        """Return the requested backend."""
        if (group or dist.group.WORLD) in self.groups:
            return NCCL
        return str(self._real["get_backend"](group))

    def all_reduce(self, tensor: Tensor, op: Any = _SUM, group: Any = None) -> None:
        """Reduce in place."""
        self._send("all_reduce", group, [tensor], tensor, op, group)

    def broadcast(self, tensor: Tensor, src: int, group: Any = None) -> None:
        """Overwrite with the source's values."""
        self._send("broadcast", group, [tensor], tensor, src, group)

    def batch_isend_irecv(self, p2p_op_list: list[dist.P2POp]) -> list[Any]:
        """Exchange messages."""
        tensors = [operation.tensor for operation in p2p_op_list]
        group = p2p_op_list[0].group
        works: list[Any] = self._send("batch_isend_irecv", group, tensors, p2p_op_list)
        return works

    def _host(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call torch's own function, to which all tensors are on the CPU."""
        with torch._C.DisableTorchFunction():
            return self._real[name](*args, **kwargs)

    def _send(self, name: str, group: Any, tensors: list[Tensor], *args: Any) -> Any:
        gpus, nccl = self._gpus, self.get_backend(group) == NCCL
        place = torch.device("cuda", gpus.current) if nccl else torch.device("cpu")
        for tensor in tensors:
            if gpus.device_of(tensor) != place:
                raise RuntimeError(
                    f"No backend type associated with device type {gpus.device_of(tensor)} in a "
                    f"group of {place}: {name}"
                )
        if not nccl:
            return self._host(name, *args)
        if not all(tensor.is_contiguous() for tensor in tensors):
            raise ValueError(f"Tensors must be contiguous: {name}")

        def send() -> None:
            for work in self._host(name, *args) or ():
                work.wait()

        if gpus.capture is not None:
            gpus.capture.keep(tensor.untyped_storage() for tensor in tensors)
        send()
        gpus.work(name, SECONDS, send)
        return [Sent()]
