"""The table of GPUs: what each can run and its peak speeds, with the source of every figure.

`livetalk plan` forecasts from it, and ``livetalk backends --gpu NAME`` asks the backends about an
absent GPU. Peaks are dense, without structured sparsity; bandwidths are per second, those of links
in one direction. Data-sheet figures are kept apart from what others measured (the rates that large
matrix products and attention actually reach) and from assumptions.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from itertools import pairwise
from types import MappingProxyType

from .errors import UserError

SHEET, ELSEWHERE, HERE, ASSUMED = "data sheet", "measured elsewhere", "measured here", "assumed"
FA2, FA3, BEST = "fa2", "fa3", "best"  # attention kernels
ATTENTION_RATE = "attention "  # prefix of a kernel's name, in the names of figures

_T, _G = 1e12, 1e9

SHARED_MEMORY: Mapping[tuple[int, int], int] = MappingProxyType(
    {(8, 0): 163 << 10, (8, 9): 99 << 10, (9, 0): 227 << 10, (10, 0): 227 << 10, (12, 0): 99 << 10}
)
"""Compute capability -> bytes of shared memory that a block may opt in to.

Source: CUDA Programming Guide, technical specifications per compute capability.
"""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A figure and its source.

    Attributes:
        value: In SI units: bytes, bytes per second, FLOP/s, a count.
        source: Title of the document, or how it was measured.
        kind: ``data sheet``, ``measured elsewhere``, ``measured here`` or ``assumed``.
    """

    value: float
    source: str
    kind: str = SHEET

    def __post_init__(self) -> None:
        """Reject a figure without a source."""
        assert self.value > 0 and self.source
        assert self.kind in {SHEET, ELSEWHERE, HERE, ASSUMED}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One type of GPU.

    Attributes:
        name: Value of ``--gpu``.
        title: Display name.
        capability: Compute capability.
        memory: Bytes.
        bandwidth: Memory bandwidth.
        sms: Streaming multiprocessors.
        bf16: Dense tensor-core peak.
        fp8: The same in FP8; None if the tensor cores lack it.
        fp64: Peak outside the tensor cores, used by the published rotation in complex128.
        nvlink: To other GPUs of the node, one way; over PCIe without NVLink.
        network: To other nodes, one way, per GPU.
        matmul: Rate that large bf16 matrix products reach.
        matmul_fp8: The same in FP8.
        attention: Kernel -> 16-bit rate of attention to many keys with 128 channels per head.
    """

    name: str
    title: str
    capability: tuple[int, int]
    memory: Quantity
    bandwidth: Quantity
    sms: Quantity
    bf16: Quantity
    fp8: Quantity | None
    fp64: Quantity
    nvlink: Quantity
    network: Quantity
    matmul: Quantity
    matmul_fp8: Quantity | None
    attention: Mapping[str, Quantity] = field(default_factory=dict)

    @property
    def shared_memory(self) -> int:
        """Bytes of shared memory that a block may opt in to."""
        return SHARED_MEMORY[self.capability]

    def quantities(self) -> dict[str, Quantity]:
        """Map names to all figures."""
        found: dict[str, Quantity] = {}
        for entry in fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, Quantity):
                found[entry.name] = value
        return found | {ATTENTION_RATE + name: value for name, value in self.attention.items()}


_MAMF = (
    "maximum achievable matmul FLOPS, table in S. Bekman, Machine Learning Engineering Open Book"
)
_FA2 = "Dao, FlashAttention-2 (arXiv 2307.08691): up to 73 % of an A100's peak"
_FA2_HOPPER = "Shah et al., FlashAttention-3 (arXiv 2407.08608): FlashAttention-2 reaches 35 %"
_DESIGN = "this project's design notes: a Hopper ceiling, measured on an H200"
_FA_H20 = "flash-attention issue 1310: H20, fp16, head 128, 2,048 keys, not causal"
_HOPPER = "NVIDIA H100 Tensor Core GPU data sheet, SXM"
_DGX_H = "NVIDIA DGX H100 data sheet: eight ConnectX-7 of 400 Gb/s for eight GPUs"
_H800 = "NVIDIA H800 data sheet, as reviews quote it: an H100 with 400 GB/s NVLink, 1 TFLOP/s FP64"
_H20 = "NVIDIA H20 data sheet, as reviews quote it"
_B200 = "NVIDIA Blackwell architecture brief, HGX B200"


def _hopper(name: str, title: str, **given: Quantity) -> Gpu:
    """Build an entry for a GH100, with what all its variants share."""
    attention = {
        FA2: Quantity(value=0.35 * 989 * _T, source=_FA2_HOPPER, kind=ELSEWHERE),
        FA3: Quantity(value=650 * _T, source=_DESIGN, kind=ELSEWHERE),
        BEST: Quantity(value=650 * _T, source=_DESIGN, kind=ELSEWHERE),
    }
    usual: dict[str, Quantity] = {
        "memory": Quantity(value=80 * _G, source=_HOPPER),
        "bandwidth": Quantity(value=3.35 * _T, source=_HOPPER),
        "sms": Quantity(value=132, source=_HOPPER),
        "bf16": Quantity(value=989 * _T, source=f"{_HOPPER} (1,979 with sparsity)"),
        "fp8": Quantity(value=1979 * _T, source=f"{_HOPPER} (3,958 with sparsity)"),
        "fp64": Quantity(value=34 * _T, source=_HOPPER),
        "nvlink": Quantity(value=450 * _G, source=f"{_HOPPER}: 900 GB/s both ways"),
        "network": Quantity(value=50 * _G, source=_DGX_H),
        "matmul": Quantity(value=790 * _T, source=_DESIGN, kind=ELSEWHERE),
        "matmul_fp8": Quantity(value=1500 * _T, source=_DESIGN, kind=ELSEWHERE),
    }
    figures = usual | given
    return Gpu(name=name, title=title, capability=(9, 0), attention=attention, **figures)


def _graphics(
    name: str, title: str, capability: tuple[int, int], *, pcie: Quantity, network: Quantity,
    **given: Quantity,
) -> Gpu:  # fmt: skip
    """Build an entry for a card without NVLink; its product and attention rates are assumed."""
    bf16, fp8 = given["bf16"].value, given["fp8"].value
    attention = Quantity(value=0.73 * bf16, source="as an A100's share of its peak", kind=ASSUMED)
    return Gpu(
        name=name,
        title=title,
        capability=capability,
        nvlink=pcie,
        network=network,
        matmul=Quantity(value=0.8 * bf16, source=_AS_HOPPER, kind=ASSUMED),
        matmul_fp8=Quantity(value=0.76 * fp8, source=_AS_HOPPER, kind=ASSUMED),
        attention={FA2: attention, BEST: attention},
        **given,
    )


_A100 = "NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM"
_AS_HOPPER = "the share of its peak that an H100 reaches"
_L40S = "NVIDIA L40S data sheet"
_ADA = "NVIDIA Ada GPU Architecture, white paper"
_RTX_BLACKWELL = "NVIDIA RTX Blackwell GPU Architecture, white paper"
_FP64 = "a 64th of the FP32 rate"
_UNBOUND = "93 % of the peak: its clock is not bound by power"

_TABLE = (
    Gpu(
        name="a100",
        title="A100 SXM 80 GB",
        capability=(8, 0),
        memory=Quantity(value=80 * _G, source=_A100),
        bandwidth=Quantity(value=2.039 * _T, source=_A100),
        sms=Quantity(value=108, source="NVIDIA A100 Tensor Core GPU Architecture, white paper"),
        bf16=Quantity(value=312 * _T, source=_A100),
        fp8=None,
        fp64=Quantity(value=9.7 * _T, source=_A100),
        nvlink=Quantity(value=300 * _G, source=f"{_A100}: 600 GB/s both ways"),
        network=Quantity(
            value=25 * _G, source="NVIDIA DGX A100 data sheet: eight ConnectX-6 of 200 Gb/s"
        ),
        matmul=Quantity(value=267.9 * _T, source=_MAMF, kind=ELSEWHERE),
        matmul_fp8=None,
        attention={
            FA2: Quantity(value=0.73 * 312 * _T, source=_FA2, kind=ELSEWHERE),
            BEST: Quantity(value=0.73 * 312 * _T, source=_FA2, kind=ELSEWHERE),
        },
    ),
    _hopper("h100", "H100 SXM 80 GB"),
    _hopper(
        "h800",
        "H800 SXM 80 GB",
        fp64=Quantity(value=1 * _T, source=_H800),
        nvlink=Quantity(value=200 * _G, source=f"{_H800}, both ways together"),
    ),
    Gpu(
        name="h20",
        title="H20 SXM 96 GB",
        capability=(9, 0),
        memory=Quantity(value=96 * _G, source=_H20),
        bandwidth=Quantity(value=4.0 * _T, source=_H20),
        sms=Quantity(value=78, source=_H20),
        bf16=Quantity(value=148 * _T, source=_H20),
        fp8=Quantity(value=296 * _T, source=_H20),
        fp64=Quantity(value=1 * _T, source=_H20),
        nvlink=Quantity(value=450 * _G, source=f"{_H20}: 900 GB/s both ways"),
        network=Quantity(value=50 * _G, source="as an H100's node", kind=ASSUMED),
        matmul=Quantity(value=0.93 * 148 * _T, source=_UNBOUND, kind=ASSUMED),
        matmul_fp8=Quantity(value=0.93 * 296 * _T, source=_UNBOUND, kind=ASSUMED),
        attention={
            FA2: Quantity(value=83.7 * _T, source=_FA_H20, kind=ELSEWHERE),
            FA3: Quantity(value=126.2 * _T, source=_FA_H20, kind=ELSEWHERE),
            BEST: Quantity(value=129.1 * _T, source=f"{_FA_H20}, cuDNN", kind=ELSEWHERE),
        },
    ),
    _hopper(
        "h200",
        "H200 SXM 141 GB",
        memory=Quantity(value=141 * _G, source="NVIDIA H200 Tensor Core GPU data sheet, SXM"),
        bandwidth=Quantity(value=4.8 * _T, source="NVIDIA H200 Tensor Core GPU data sheet, SXM"),
    ),
    Gpu(
        name="b200",
        title="B200 HGX 180 GB",
        capability=(10, 0),
        memory=Quantity(value=180 * _G, source="NVIDIA DGX B200 data sheet: 1,440 GB for eight"),
        bandwidth=Quantity(value=8.0 * _T, source="NVIDIA DGX B200 data sheet: 64 TB/s for eight"),
        sms=Quantity(value=148, source="device query of a B200, as public benchmarks print it"),
        bf16=Quantity(value=2250 * _T, source=_B200),
        fp8=Quantity(value=4500 * _T, source=_B200),
        fp64=Quantity(value=40 * _T, source=_B200),
        nvlink=Quantity(value=900 * _G, source=f"{_B200}: 1.8 TB/s both ways"),
        network=Quantity(
            value=50 * _G, source="NVIDIA DGX B200 data sheet: eight ConnectX-7 of 400 Gb/s"
        ),
        matmul=Quantity(value=1745 * _T, source=_MAMF, kind=ELSEWHERE),
        matmul_fp8=Quantity(value=3432.5 * _T, source=_MAMF, kind=ELSEWHERE),
        attention={
            BEST: Quantity(
                value=1428 * _T,
                source="flash-attention pull request 2605: cuDNN, head 128, 1,024 keys",
                kind=ELSEWHERE,
            )
        },
    ),
    _graphics(
        "l40s",
        "L40S 48 GB",
        (8, 9),
        pcie=Quantity(value=32 * _G, source=f"{_L40S}: PCIe 4.0 x16, 64 GB/s both ways"),
        network=Quantity(value=12.5 * _G, source="a network port of 100 Gb/s", kind=ASSUMED),
        memory=Quantity(value=48 * _G, source=_L40S),
        bandwidth=Quantity(value=864 * _G, source=_L40S),
        sms=Quantity(value=142, source=f"{_L40S}: 18,176 CUDA cores, 128 a multiprocessor"),
        bf16=Quantity(value=362.05 * _T, source=f"{_L40S} (733 with sparsity)"),
        fp8=Quantity(value=733 * _T, source=f"{_L40S} (1,466 with sparsity)"),
        fp64=Quantity(value=91.6 / 64 * _T, source=f"{_L40S}, {_ADA}: {_FP64}"),
    ),
    _graphics(
        "rtx4090",
        "GeForce RTX 4090 24 GB",
        (8, 9),
        pcie=Quantity(value=32 * _G, source="PCIe 4.0 x16, 64 GB/s both ways"),
        network=Quantity(value=1.25 * _G, source="a network port of 10 Gb/s", kind=ASSUMED),
        memory=Quantity(value=24 * _G, source=_ADA),
        bandwidth=Quantity(value=1008 * _G, source=_ADA),
        sms=Quantity(value=128, source=_ADA),
        bf16=Quantity(value=165.2 * _T, source=f"{_ADA}, FP32 sums (330.4 with sparsity)"),
        fp8=Quantity(value=330.3 * _T, source=f"{_ADA}, FP32 sums (660.6 with sparsity)"),
        fp64=Quantity(value=82.6 / 64 * _T, source=f"{_ADA}: {_FP64}"),
    ),
    _graphics(
        "rtx5090",
        "GeForce RTX 5090 32 GB",
        (12, 0),
        pcie=Quantity(value=64 * _G, source="PCIe 5.0 x16, 128 GB/s both ways"),
        network=Quantity(value=1.25 * _G, source="a network port of 10 Gb/s", kind=ASSUMED),
        memory=Quantity(value=32 * _G, source=_RTX_BLACKWELL),
        bandwidth=Quantity(value=1792 * _G, source=_RTX_BLACKWELL),
        sms=Quantity(value=170, source=_RTX_BLACKWELL),
        bf16=Quantity(value=209.5 * _T, source=f"{_RTX_BLACKWELL}, FP32 sums (419 with sparsity)"),
        fp8=Quantity(value=419 * _T, source=f"{_RTX_BLACKWELL}, FP32 sums (838 with sparsity)"),
        fp64=Quantity(value=104.8 / 64 * _T, source=f"{_RTX_BLACKWELL}: {_FP64}"),
    ),
)

GPUS: Mapping[str, Gpu] = MappingProxyType({gpu.name: gpu for gpu in _TABLE})
OTHER_FORMS = frozenset({"pcie", "nvl", "40gb", "3e", "mig", "laptop", "d"})
"""Words in a driver's device name that mark another form than the table's, or part of a device."""


def get_gpu(name: str, *, besides: Collection[str] = ()) -> Gpu:
    """Look up a GPU by name.

    Args:
        name: A value of ``--gpu``.
        besides: Other values that ``--gpu`` accepts there, for the message.

    Raises:
        UserError: It is not in the table; the message lists those that are.
    """
    key = name.lower()
    if key not in GPUS:
        raise UserError(f"--gpu {name}: unknown; choose one of {', '.join([*GPUS, *besides])}")
    return GPUS[key]


def find_gpu(title: str) -> Gpu | None:
    """Find the GPU that a driver's device name, such as ``NVIDIA H200``, denotes.

    None for a GPU that the table lacks, including another form of one that it has, such as
    ``NVIDIA H100 PCIe``: its memory, clocks and links differ.
    """
    words = title.lower().replace("-", " ").split()
    if OTHER_FORMS & {*words}:
        return None
    names = {*words, *map("".join, pairwise(words))}  # "RTX 4090"
    return next((gpu for gpu in _TABLE if gpu.name in names), None)
