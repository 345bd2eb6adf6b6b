"""Converts amounts of work to seconds: one rule for GPUs, one for a CPU.

A GPU's rates are its hardware's (`gpus.Gpu`) times a few efficiencies, `Shares`, which are fitted.
Everything else that lowers them is arithmetic: tiles of products and of attention that don't fill
the multiprocessors, operands that are read once, launches that take longer than the kernels.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Protocol

from livetalk_kernels.gpus import ATTENTION_RATE, BEST, Gpu, Quantity

from .work import Attention, Product, Work

TILES = ((128, 128), (128, 256), (256, 128))  # rows x columns of a product per block
QUERY_TILE = 128
FP32_RATE = 1 / 16  # of the bf16 peak; A100 19.5 of 312 TFLOP/s, H100 67 of 989


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Fractions of the hardware's figures that a system achieves; these are fitted.

    Attributes:
        matmul: Of the rate of large products, after accounting for tiles.
        attention: Of its kernel's rate, likewise.
        convolution: Of the rate of large products.
        memory: Of the memory's bandwidth, in norms and copies.
        link: Of a link's bandwidth, in collectives.
    """

    matmul: float
    attention: float
    convolution: float
    memory: float
    link: float

    def as_dict(self) -> dict[str, float]:
        """Convert to a mapping by name."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs assumed for every GPU; not fitted.

    Attributes:
        launch: CPU seconds per launch, through PyTorch.
        replay: The same from a CUDA graph.
        latency: Seconds of an exchange within a node, excluding its bytes.
        far: The same between nodes.
        pageable: Bytes per second from the GPU to pageable memory.
        loudness: Seconds that measuring the loudness of 8 s of sound takes on the host.
    """

    launch: float = 6e-6
    replay: float = 1e-6
    latency: float = 20e-6
    far: float = 40e-6
    pageable: float = 5e9
    loudness: float = 0.008


class Machine(Protocol):
    """What the forecast needs to know."""

    @property
    def costs(self) -> Costs:
        """Assumed costs."""
        ...

    @property
    def lanes(self) -> bool:
        """Whether work can run concurrently with the main lane."""
        ...

    def seconds(self, work: Work, kernel: str = BEST) -> float:
        """Compute the time of the kernels, without their launches."""
        ...

    def encoder(self, work: Work) -> float:
        """Compute the time of the audio encoder's kernels."""
        ...

    def gaps(self, calls: float, busy: float, *, graphs: bool = False) -> float:
        """Compute the time that launches add to ``busy`` seconds of kernels."""
        ...

    def transfer(self, size: float, messages: float, far: float = 0.0) -> float:
        """Compute the time of exchanges.

        Args:
            size: Total bytes that one rank sends.
            messages: Number of exchanges.
            far: Fraction of the bytes that goes to other nodes.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class GpuMachine:
    """A GPU and the efficiencies achieved on it.

    Attributes:
        gpu: Hardware.
        shares: Fitted efficiencies.
        costs: Assumed costs.
        measured: Figures of ``gpu``, by name, that were measured here instead.
    """

    gpu: Gpu
    shares: Shares
    costs: Costs = field(default_factory=Costs)
    measured: Mapping[str, Quantity] = field(default_factory=dict)
    lanes: bool = True

    def quantity(self, name: str) -> Quantity | None:
        """Return a figure of the hardware, or its measured replacement."""
        kernel = name.removeprefix(ATTENTION_RATE)
        if name in self.measured:
            return self.measured[name]
        if kernel != name:
            return self.gpu.attention.get(kernel)
        found: Quantity | None = getattr(self.gpu, name)
        return found

    def _value(self, name: str) -> float:
        found = self.quantity(name)
        assert found is not None, name
        return found.value

    def seconds(self, work: Work, kernel: str = BEST) -> float:
        """Compute the time of kernels, without launches."""
        bandwidth = self._value("bandwidth") * self.shares.memory
        time = work.bytes / bandwidth + work.fp64 / self._value("fp64")
        time += sum(self._product(product, bandwidth) for product in work.products)
        time += sum(self._attention(part, kernel, bandwidth) for part in work.attentions)
        convolution = self._value("matmul") * self.shares.convolution
        convolve = work.conv_flops / convolution - work.spared_bytes / bandwidth
        return time + max(convolve, work.conv_bytes / bandwidth)

    def _product(self, product: Product, bandwidth: float) -> float:
        if product.itemsize == 4:
            rate = self._value("bf16") * FP32_RATE
        else:
            rate = self._value("matmul_fp8" if product.fp8 else "matmul")
            rate *= self.shares.matmul * product_share(product, round(self._value("sms")))
        return max(product.flops / rate, product.bytes / bandwidth)

    def _attention(self, part: Attention, kernel: str, bandwidth: float) -> float:
        rate = self._value(ATTENTION_RATE + kernel) * self.shares.attention
        rate *= attention_share(part, round(self._value("sms")))
        return max(part.flops / rate, part.bytes / bandwidth)

    def encoder(self, work: Work) -> float:
        """Treat it like any other work."""
        return self.seconds(work)

    def gaps(self, calls: float, busy: float, *, graphs: bool = False) -> float:
        """Count launches only where they take longer than the kernels, which they run ahead of."""
        return max(0.0, calls * (self.costs.replay if graphs else self.costs.launch) - busy)

    def transfer(self, size: float, messages: float, far: float = 0.0) -> float:
        """Let links within a node and between nodes work concurrently."""
        near_rate = self._value("nvlink") * self.shares.link
        far_rate = self._value("network") * self.shares.link
        latency = self.costs.far if far else self.costs.latency
        return max(size * (1 - far) / near_rate, size * far / far_rate) + messages * latency

    def with_shares(self, shares: Shares) -> "GpuMachine":
        """Return the same hardware with other efficiencies."""
        return replace(self, shares=shares)


def product_share(product: Product, sms: int) -> float:
    """Compute the fraction of the multiprocessors' time that a product's best tiles use."""
    best = 0.0
    for rows, columns in TILES:
        tiles = math.ceil(product.rows / rows) * math.ceil(product.columns / columns)
        slots = math.ceil(tiles / sms) * sms * rows * columns
        best = max(best, product.rows * product.columns / slots)
    return best


def attention_share(part: Attention, sms: int) -> float:
    """Do the same for attention, whose blocks compute tiles of one head's queries."""
    tiles = math.ceil(part.queries / QUERY_TILE) * part.heads
    slots = math.ceil(tiles / sms) * sms * QUERY_TILE
    return part.queries * part.heads / slots


@dataclass(frozen=True, kw_only=True)
class CpuRates:
    """Rates of a CPU, all fitted to recorded reports.

    Attributes:
        linears: FLOP/s of linear layers.
        attention: FLOP/s of attention.
        convolution: FLOP/s of the VAE's convolutions.
        bandwidth: Bytes per second in norms, copies and colour.
        call: Seconds per op call in addition to its work.
        audio: FLOP/s of the audio encoder.
    """

    linears: float
    attention: float
    convolution: float
    bandwidth: float
    call: float
    audio: float

    def as_dict(self) -> dict[str, float]:
        """Convert to a mapping by name."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}


@dataclass(frozen=True, kw_only=True)
class CpuMachine:
    """A CPU with fitted rates; it has one lane and one rank."""

    rates: CpuRates
    costs: Costs = field(default_factory=lambda: Costs(loudness=0.0))
    lanes: bool = False

    def seconds(self, work: Work, kernel: str = BEST) -> float:
        """Add up all times: nothing overlaps."""
        rates = self.rates
        time = sum(product.flops for product in work.products) / rates.linears
        time += sum(part.flops for part in work.attentions) / rates.attention
        return time + work.conv_flops / rates.convolution + work.bytes / rates.bandwidth

    def encoder(self, work: Work) -> float:
        """Use the rate of the library that runs it."""
        return work.flops / self.rates.audio

    def gaps(self, calls: float, busy: float, *, graphs: bool = False) -> float:
        """Charge every call."""
        return calls * self.rates.call

    def transfer(self, size: float, messages: float, far: float = 0.0) -> float:
        """Return 0: there are no peers."""
        return 0.0
