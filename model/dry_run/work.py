"""Floating-point operations and messages of the model, as counted by the dry run.

A multiply-add is two operations. Norms, activations, softmax and rotations are left out: they are
bound by memory, not arithmetic.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch

from livetalk_kernels.runtime.mesh import Mesh
from livetalk_kernels.runtime.sequence_parallel import SequenceParallel
from livetalk_kernels.runtime.slices import Slices
from livetalk_kernels.runtime.solo import SoloCommunicator

from ..config import LATENT_FRAMES, MOTION_LATENTS, DiTConfig, VAEConfig
from ..vae import SPATIAL
from .record import (
    AUDIO_KV,
    DECODE,
    DENOISE,
    ENCODE,
    PREPARE,
    SECOND,
    WARM,
    record_transformer,
    record_vae,
)
from .recorder import META, Phase, Recorder

_CPU, _DTYPE = "cpu", torch.float32  # counts are the same for all others
NEW_LATENTS = LATENT_FRAMES - MOTION_LATENTS


@dataclass(frozen=True, kw_only=True)
class DiTFlops:
    """FLOPs of the transformer, by how often the work is done.

    Attributes:
        step: Per step: everything that depends on the latent.
        chunk: Per chunk: audio projection and audio K/V.
        session: Per session with a schedule of one step: embeddings, K/V of text and image,
            constant patch embedding, time embedding and modulation.
    """

    step: int
    chunk: int
    session: int

    def total(self, steps: int, *, reuse: bool) -> int:
        """Sum the FLOPs of a chunk; without ``reuse`` everything is repeated in every step."""
        if reuse:
            return steps * self.step + self.chunk
        return steps * (self.step + self.chunk + self.session)


def dit_flops(
    config: DiTConfig, grid: tuple[int, int, int], *, text_rows: int | None = None
) -> DiTFlops:
    """Count the transformer's FLOPs for one voice.

    Args:
        config: Shape of the model.
        grid: Tokens in frames, rows and columns.
        text_rows: Rows of the prompt's embedding; by default the longest prompt's.
    """
    found = record_transformer(config, grid, device=_CPU, dtype=_DTYPE, text_rows=text_rows).phases
    return DiTFlops(
        step=found[DENOISE].flops, chunk=found[AUDIO_KV].flops, session=found[PREPARE].flops
    )


def vae_flops(config: VAEConfig, size: tuple[int, int], *, reuse: bool) -> Mapping[str, int]:
    """Count the VAE's FLOPs for a chunk that is not the first.

    Assumes direct convolution, so an algorithm with fewer products exceeds the rate derived from
    this.

    Args:
        config: Widths.
        size: Height and width in pixels, multiples of 8.
        reuse: Schedule (see `VAE`).

    Returns:
        ``warm decoder`` for the motion latents, ``decode`` for the new ones, ``latent`` for one of
        those, and ``encode``.
    """
    latent = size[0] // SPATIAL, size[1] // SPATIAL
    found = record_vae(config, latent, device=_CPU, dtype=_DTYPE, reuse=reuse).phases
    one = found[DECODE].flops
    return {
        WARM: found[WARM].flops,
        DECODE: found[SECOND].flops + (NEW_LATENTS - 1) * one,
        "latent": one,
        ENCODE: found[ENCODE].flops,
    }


@cache
def attention_messages(
    mesh: Mesh, rank: int, *, tokens: int, heads: int, head_dim: int, dtype: torch.dtype
) -> Mapping[str, int]:
    """Count the bytes that a rank sends around a self-attention, by kind; see the runtime's README.

    Args:
        mesh: The ranks.
        rank: The sender.
        tokens: Tokens of the whole sequence.
        heads: Attention heads.
        head_dim: Channels per head.
        dtype: Dtype of q, k and v.
    """
    noted = Recorder(_CPU, dtype)
    comm = SoloCommunicator(rank, mesh.world, noted.traffic)
    with torch.no_grad(), noted:
        sequence = SequenceParallel(mesh, comm, noted.ops).sequence(tokens)
        own = sequence.rows.stop - sequence.rows.start
        q = torch.empty(heads, 1, own, head_dim, dtype=dtype, device=META)
        v = torch.empty(1, own, heads, head_dim, dtype=dtype, device=META)
        sequence.attention(q, q.clone(), v)
    return dict(noted.traffic.bytes)


def slice_messages(phase: Phase, slices: Slices, rank: int, itemsize: int) -> Mapping[str, int]:
    """Count the bytes that a rank of a sliced VAE sends in a phase recorded for the whole picture.

    Args:
        phase: From `record_vae` with one rank.
        slices: Assignment of slices to ranks.
        rank: The sender.
        itemsize: Bytes per value.

    Returns:
        ``halo``, to its neighbours, and ``gather``, to all others.
    """
    halo = sum(
        count
        * border.channels
        * border.frames
        * slices.halo_pixels(rank, border.padding, border.factor)
        for border, count in phase.borders.items()
    )
    gather = phase.gathered * slices.boxes[rank].pixels * (slices.grid.world - 1)
    return {"halo": halo * itemsize, "gather": gather * itemsize}
