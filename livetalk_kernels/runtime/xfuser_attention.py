"""Attention over the mesh with xfuser (xDiT) instead of ours, for comparison on CUDA.

Thin: `XFuserAttention` is passed to `SequenceParallel` as ``foreign``. xfuser needs divisible token
and head counts, and its traffic is not counted. Its mesh is ours: Ulysses groups are neighbours.

Source: xDiT, Fang et al. 2024, arXiv 2411.01738; ``xFuserLongContextAttention``, read at 0.4.0 to
0.4.5.
"""

import importlib

import torch
import torch.distributed as dist
from torch import Tensor

from ..backends.reasons import device_reason, dtype_reason
from ..precision import HALF_DTYPES
from .mesh import Mesh

INSTALL = "pip install 'livetalk[xfuser]'"


def reason(mesh: Mesh, device: torch.device, dtype: torch.dtype, *, heads: int) -> str | None:
    """Return None if xfuser's attention can run, else why it cannot.

    Args:
        mesh: The ranks.
        device: Device of the model.
        dtype: Dtype of q, k and v.
        heads: Attention heads.
    """
    why = device_reason(device, "cuda") or dtype_reason(dtype, HALF_DTYPES)
    if why is not None:
        return why
    if heads % mesh.ulysses:
        return f"{heads} heads do not divide by {mesh.ulysses} Ulysses ranks"
    try:
        importlib.import_module("xfuser.core.long_ctx_attention")
    except ImportError as error:
        return f"xfuser cannot be imported ({str(error).splitlines()[0]}); {INSTALL}"
    return None


class XFuserAttention:
    """A `MeshAttention`: q, k, v of this rank's rows -> attention to all ranks' rows."""

    def __init__(self, mesh: Mesh) -> None:
        """Create xfuser's groups; every rank of the process group must do so.

        Args:
            mesh: All ranks of the initialised default process group.
        """
        distributed = importlib.import_module("xfuser.core.distributed")
        layers = importlib.import_module("xfuser.core.long_ctx_attention")
        assert dist.get_world_size() == mesh.world
        if not distributed.model_parallel_is_initialized():
            distributed.init_distributed_environment(
                world_size=mesh.world,
                rank=dist.get_rank(),
                local_rank=torch.cuda.current_device(),
            )
            distributed.initialize_model_parallel(
                sequence_parallel_degree=mesh.world,
                ulysses_degree=mesh.ulysses,
                ring_degree=mesh.ring,
            )
        self._attention = layers.xFuserLongContextAttention()

    def __call__(self, q_BLHd: Tensor, k_BLHd: Tensor, v_BLHd: Tensor) -> Tensor:
        """Compute attention; inputs and output are contiguous."""
        query, key, value = (x.contiguous() for x in (q_BLHd, k_BLHd, v_BLHd))
        out_BLHd: Tensor = self._attention(None, query=query, key=key, value=value)
        return out_BLHd.contiguous()
