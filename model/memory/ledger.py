"""A ledger of bytes: what a program holds as it goes along, and the most that it ever held."""

from dataclasses import dataclass
from typing import NamedTuple


class Peak(NamedTuple):
    """Bytes at the moment when most were held.

    activations: Tensors that the model's code names or passes.
    workspace: What a backend or a library allocates besides.
    """

    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.activations + self.workspace


class Ledger:
    """Counts what is taken and freed.

    Attributes:
        held: Activations that are held now.
        peak: The moment when most was held.
    """

    def __init__(self, held: int = 0) -> None:
        """Begin with so many bytes; fewer than none where something has been freed before."""
        self.held = held
        self._workspace = 0
        self.peak = Peak(held, 0)

    def take(self, count: int) -> int:
        """Hold a tensor of ``count`` bytes; returns them, for `free`."""
        self.held += count
        self._note()
        return count

    def free(self, *counts: int) -> None:
        """Let go of tensors."""
        self.held -= sum(counts)

    def take_workspace(self, count: int) -> int:
        """Hold workspace; returns its size, for `free_workspace`."""
        self._workspace += count
        self._note()
        return count

    def free_workspace(self, count: int) -> None:
        """Let go of workspace."""
        self._workspace -= count

    def use(self, count: int) -> None:
        """Take workspace, and free it at once."""
        self.free_workspace(self.take_workspace(count))

    def _note(self) -> None:
        if self.held + self._workspace > self.peak.total:
            self.peak = Peak(self.held, self._workspace)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What decides how large tensors are and which backends run: those that ``auto`` prefers.

    Attributes:
        device: ``cpu`` or ``cuda``.
        item: Bytes of a number in DiT and VAE: 4 (fp32) or 2 (bf16).
        widens: bf16 is multiplied as fp32 (see `linear`).
    """

    device: str
    item: int
    widens: bool = False

    def product(self, rows: int, inputs: int, outputs: int) -> int:
        """Bytes that a linear layer has besides its operands and result: all of them in fp32."""
        return FP32 * (rows * inputs + inputs * outputs + rows * outputs) if self.widens else 0

    @property
    def is_cpu(self) -> bool:
        """Compiled CPU kernels and oneDNN, not Triton and cuDNN."""
        return self.device == "cpu"


FP32 = 4
_PACKED_KEYS = 32 << 20  # csrc/bindings/attention_cpu.cpp: units are packed together up to this
_KEY_BLOCK, _KEY_ROUND, _LANES = 192, 8, 16  # csrc/cpu/attention.h


def attention_workspace(machine: Machine, units: int, channels: int, *contexts: int) -> int:
    """Bytes of fp32 keys and values that the compiled attention packs; 0 on CUDA.

    Args:
        machine: Where it runs.
        units: Heads times batch times frames with keys of their own.
        channels: Of a head.
        contexts: Keys of each softmax.
    """
    if not machine.is_cpu:
        return 0
    packed, longest = 0, 0
    for keys in contexts:
        blocks = _parts(keys, _KEY_BLOCK)
        block = _parts(_parts(keys, blocks), _KEY_ROUND) * _KEY_ROUND
        packed += blocks
        longest = max(longest, block)
    unit = packed * 2 * FP32 * longest * _parts(channels, _LANES) * _LANES
    return unit * min(units, max(1, _PACKED_KEYS // unit))


def _parts(count: int, size: int) -> int:
    """How many parts of at most ``size`` make up ``count``."""
    return -(-count // size)
