"""``chunk_attention`` on cuDNN's FP8 kernel, approximate.

Torch has no operator for it, so the graph is built with cuDNN's own Python package and cached per
shape. All operands of products are e4m3. cuDNN takes one scale for all of q and one for all of k; v
has one per batch element and head, which is applied to out, since heads do not mix.

Two more scales are needed before the values are known: for the softmax's weights, which are at most
1, and for out, which is no larger than v. Except on a B200 out is e4m3 too, a rounding that neither
``flash_attn3_fp8`` nor ``triton_fp8`` makes. Outliers are not smoothed. Single queries are left to
the exact backend that ``auto`` picks.

cuDNN has plans for these graphs on Hopper and B200, from 9.14, and on RTX 5090, from 9.28, as
queried without a GPU for the properties of those.

Source: ``sdpa_fp8`` of NVIDIA's cudnn-frontend, whose interface of version 1.32 is used.
"""

import functools
import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...backends.reasons import HOPPER, capability_reason
from ...dispatch import pick
from ...precision import FP8
from ...spec import Case
from ._library import as_fp8, gpu_supports, neutral

APPROXIMATE = True
MULTIPLE = 16  # channels per head must be a multiple of this
MAX_HEAD = 128  # channels supported by all GPUs; a Hopper supports twice as many
MIN_VERSION = "9.14.0"  # the oldest that the operation's own tests accept
MIN_VERSION_12 = "9.28.0"  # for compute capability 12, for which 9.14 has no kernel
MIN_PACKAGE = "1.13"  # has ``generate_stats``
# Scale of the weights, which are at most 1. A Blackwell may defer rescaling its sums, and then has
# weights of up to e^4, which it multiplies by 2^-4: they stay below 448.
WEIGHTS = 128.0
SCALAR = (1, 1, 1, 1)


def supports(case: Case) -> str | None:
    """Require 16 bits on a Hopper or newer, heads of 16 to 128 channels, and both libraries."""
    head = case.dims.get("d", MULTIPLE)
    if head % MULTIPLE:
        return f"needs heads of channels in multiples of {MULTIPLE}, not {head}"
    newest = case.capability is not None and case.capability[0] == 12
    return (
        gpu_supports(case, max_head=MAX_HEAD)
        or capability_reason(case, HOPPER)
        or case.libraries.too_old("cudnn", MIN_VERSION_12 if newest else MIN_VERSION)
        or case.libraries.too_old("cudnn-frontend", MIN_PACKAGE)
    )


def run(
    q_BLHd: Tensor, k_BSHd: Tensor, v_BSHd: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """See the contract."""
    if (result := neutral(q_BLHd, k_BSHd)) is not None:
        return result
    B, L, H, d = q_BLHd.shape
    if L == 1:
        device, dtype = q_BLHd.device, q_BLHd.dtype
        case = Case(op="chunk_attention", device=device, dtype=dtype, dims={"L": L, "d": d})
        return pick(case, "auto", named=False).run(q_BLHd, k_BSHd, v_BSHd, scale=scale)
    q, q_scale = as_fp8(q_BLHd, over=(0, 1, 2, 3))
    k, k_scale = as_fp8(k_BSHd, over=(0, 1, 2, 3))
    v, v_scale = as_fp8(v_BSHd, over=(1, 3))
    factor = d**-0.5 if scale is None else scale
    with torch.cuda.device_of(q):
        plan = plan_for(q.device, B, L, k.shape[1], H, d, factor, result_dtype(q_BLHd))
        out_BLHd = q.new_empty(q.shape, dtype=plan.result)
        lse_BHL = q.new_empty((B, H, L), dtype=torch.float32)
        one, weights, inverse, peak, out_peak = (
            q.new_full(SCALAR, value, dtype=torch.float32)
            for value in (1.0, WEIGHTS, 1 / WEIGHTS, 0.0, 0.0)
        )
        plan.execute(
            q=q,
            k=k,
            v=v,
            descale_q=q_scale,
            descale_k=k_scale,
            descale_v=one,
            descale_s=inverse,
            scale_s=weights,
            scale_o=one,
            out=out_BLHd,
            lse=lse_BHL,
            peak_s=peak,
            peak_o=out_peak,
        )
    return (out_BLHd.float() * v_scale).to(q_BLHd.dtype), lse_BHL


def result_dtype(q_BLHd: Tensor) -> torch.dtype:
    """Return the kernel's output dtype: q's on compute capability 10, elsewhere e4m3."""
    return q_BLHd.dtype if torch.cuda.get_device_capability(q_BLHd.device)[0] == 10 else FP8


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A compiled graph, and what is needed to run it.

    Attributes:
        handle: cuDNN's handle on the graph's device.
        graph: The graph.
        tensors: Name -> the graph's tensor.
        workspace: Bytes of scratch memory per call.
        result: Dtype of out.
    """

    handle: Any
    graph: Any
    tensors: dict[str, Any]
    workspace: int
    result: torch.dtype

    def execute(self, **values: Tensor) -> None:
        """Run it on the current stream; a value for each of ``tensors``."""
        cudnn = importlib.import_module("cudnn")
        device = values["q"].device
        stream = torch.cuda.current_stream(device).cuda_stream
        cudnn.set_stream(handle=self.handle, stream=stream)
        workspace = torch.empty(self.workspace, dtype=torch.uint8, device=device)
        pack = {tensor: values[name] for name, tensor in self.tensors.items()}
        self.graph.execute(pack, workspace, handle=self.handle)


@functools.cache
def handle_of(device: torch.device) -> Any:
    """Return cuDNN's handle on a device, which must be the current one."""
    return importlib.import_module("cudnn").create_handle()


@functools.lru_cache(maxsize=64)
def plan_for(
    device: torch.device,
    B: int,
    L: int,
    S: int,
    H: int,
    d: int,
    scale: float,
    result: torch.dtype,
) -> Plan:
    """Compile the graph for contiguous q, k and v; scales are read at each call."""
    cudnn = importlib.import_module("cudnn")
    kind, mode = cudnn.data_type, cudnn.heur_mode
    results = {FP8: kind.FP8_E4M3, torch.bfloat16: kind.BFLOAT16, torch.float16: kind.HALF}
    handle = handle_of(device)
    graph = cudnn.pygraph(
        io_data_type=kind.FP8_E4M3,
        intermediate_data_type=kind.FLOAT,
        compute_data_type=kind.FLOAT,
        handle=handle,
    )

    def tokens(length: int) -> dict[str, Any]:
        """Describe a contiguous [B, length, H, d] as cuDNN's [B, H, length, d]."""
        return {"dim": (B, H, length, d), "stride": (length * H * d, d, H * d, 1)}

    scalar = {"dim": SCALAR, "stride": SCALAR}
    tensors = {
        name: graph.tensor(name=name, data_type=kind.FP8_E4M3, **tokens(length))
        for name, length in (("q", L), ("k", S), ("v", S))
    }
    for name in ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o"):
        tensors[name] = graph.tensor(name=name, data_type=kind.FLOAT, **scalar)
    outputs = graph.sdpa_fp8(**tensors, attn_scale=scale, generate_stats=True)
    rows = {"dim": (B, H, L, 1), "stride": (H * L, L, 1, 1)}
    described = (
        ("out", tokens(L), results[result]),
        ("lse", rows, kind.FLOAT),
        ("peak_s", scalar, kind.FLOAT),
        ("peak_o", scalar, kind.FLOAT),
    )
    for tensor, (name, shape, dtype) in zip(outputs, described, strict=True):
        tensor.set_output(True).set_dim(shape["dim"]).set_stride(shape["stride"])
        tensor.set_data_type(dtype)
        tensors[name] = tensor
    graph.build([mode.A, mode.FALLBACK])
    return Plan(
        handle=handle,
        graph=graph,
        tensors=tensors,
        workspace=graph.get_workspace_size(),
        result=result,
    )
