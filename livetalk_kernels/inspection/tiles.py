"""Ranks the FP8 linears' tiles with NVIDIA's nvMatmulHeuristics, without a GPU.

It models a matrix product on a GPU and orders the tiles it would try. Only that order is used here,
to see where our kernels' tiles rank. Its times come from a model and tie for the best tiles: they
show which are equal, and are not displayed.
"""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType, ModuleType
from typing import Any, TypeAlias

import torch

from ..advice import NEWEST
from ..backends.libraries import LIBRARIES, Libraries
from ..errors import UserError
from ..gpus import Gpu
from ..ops.fp8_gemm import triton as gemm
from ..registry import load_backend, load_op
from ..spec import Case

OPS = ("fp8_gemm", "fp8_gemm_gelu_quant")
INSTALL = "pip install 'livetalk[heuristics]'"
PRECISION = "QST"  # e4m3 times e4m3, summed in fp32, stored as bf16
COUNT = 64  # kernels to request; many differ only in warps
SHOWN = 3
# csrc/cuda/sm90; the second one's programs quantise blocks of 128 columns.
CUTLASS_COLUMNS = {"fp8_gemm": (192, 128), "fp8_gemm_gelu_quant": (128,)}
EQUALS = 1e-9  # relative difference below which times are equal

_ALL = Libraries(supposed=dict.fromkeys(LIBRARIES, NEWEST))

# Our name -> theirs. An H800 has an H100's chip; its links and fp64 differ, but no tile depends on
# them.
_GPUS: Mapping[str, str] = MappingProxyType(
    {
        "a100": "A100_SXM_80GB",
        "h100": "H100_SXM",
        "h800": "H100_SXM",
        "h20": "H20_SXM",
        "h200": "H200_SXM",
        "b200": "B200",
        "l40s": "L40S",
        "rtx4090": "RTX_4090",
        "rtx5090": "RTX_5090",
    }
)

Tile: TypeAlias = tuple[int, int]
"""Rows and columns of the results that a program computes at a time."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The order of tiles for one product.

    Attributes:
        op: Name of the op.
        case: Name of its case.
        sizes: M, N and K.
        best: The first tiles of the order, one of each kind.
        places: Our kernel, such as ``triton 128x256`` -> its rank from 1, shared by ties; None
            for a tile that is not in the order.
    """

    op: str
    case: str
    sizes: tuple[int, int, int]
    best: tuple[str, ...]
    places: Mapping[str, int | None]


def rank(ops: Sequence[str], gpu: Gpu) -> list[Ranking]:
    """Rank the tiles of the FP8 linears at the model's sizes.

    Args:
        ops: Names of ops; those that are not FP8 linears have no tiles.
        gpu: GPU from the table.

    Raises:
        UserError: nvMatmulHeuristics is not installed, or does not load.
    """
    library = _library()
    model = library.NvMatmulHeuristicsInterfaceEx(
        backend=library.NvMatmulHeuristicsTarget.CUTLASS3,
        gpu=library.NvMatmulHeuristicsNvidiaGpu[_GPUS[gpu.name]],
        flags=library.NvMatmulHeuristicsFlags.PERF_MODEL_BASED_AUTO_TUNING,
    )
    layout = library.NvMatmulHeuristicsMatmulLayout.NT_ROW_MAJOR
    found: list[Ranking] = []
    for op in (op for op in OPS if op in ops):
        for case in load_op(op).cases(torch.device("meta"), torch.bfloat16):
            M, N, K = (case.dims[letter] for letter in "MNK")
            if not case.large or (op, (M, N, K)) in [(one.op, one.sizes) for one in found]:
                continue  # small ones are not a model's; layouts of scales do not affect tiles
            problem = model.makeNvMatmulHeuristicsProblem(M, N, K, layout)
            order = _order(model.get(problem, COUNT, precision=PRECISION))
            found.append(
                Ranking(
                    op=op,
                    case=case.name,
                    sizes=(M, N, K),
                    best=tuple(map(_text, list(order)[:SHOWN])),
                    places={
                        f"{name} {_text(tile)}": order.get(tile)
                        for name, tile in our_tiles(case, gpu)
                    },
                )
            )
    return found


def our_tiles(case: Case, gpu: Gpu) -> list[tuple[str, Tile]]:
    """List our backends that run on a GPU, with the tiles each uses or may use there."""
    at = replace(case, device=torch.device("cuda"), gpu=gpu, libraries=_ALL)
    columns = {
        "triton": (gemm.tile_columns(case.dims["M"], case.dims["N"], int(gpu.sms.value)),),
        "cutlass": CUTLASS_COLUMNS[case.op],
    }
    return [
        (name, (gemm.BLOCK_M, count))
        for name, counts in columns.items()
        if load_backend(case.op, name).supports(at) is None
        for count in counts
    ]


def _order(kernels: Sequence[Mapping[str, Any]]) -> dict[Tile, int]:
    """Map tiles to ranks, best first: one more than the number of faster tiles."""
    times: dict[Tile, float] = {}
    for one in kernels:
        tile = one["kernel"].cta_tile_m, one["kernel"].cta_tile_n
        times[tile] = min(one["runtime"], times.get(tile, one["runtime"]))
    places = {
        tile: 1 + sum(other < time * (1 - EQUALS) for other in times.values())
        for tile, time in times.items()
    }
    return dict(sorted(places.items(), key=lambda pair: pair[1]))


def _text(tile: Tile) -> str:
    return f"{tile[0]}x{tile[1]}"


def _library() -> ModuleType:
    try:
        return importlib.import_module("nvMatmulHeuristics")
    except (ImportError, OSError) as error:
        raise UserError(f"--tiles: nvMatmulHeuristics is not here ({error}); {INSTALL}") from None
