"""Work of the transformer and the audio encoder on one rank, from a dry run of that rank alone.

A rank's share is that of the tokens, except in self-attention; rank 0 has the largest, so the
others wait for it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

import torch

from livetalk_kernels.runtime.mesh import Mesh, shares
from livetalk_kernels.spec import ACTIVATIONS, ATTENTION, CROSS, LINEARS, NORMS

from ..config import AudioEncoderConfig, DiTConfig
from ..dry_run.record import AUDIO, AUDIO_KV, DENOISE, PREPARE, record_audio, record_transformer
from ..dry_run.recorder import Call, Phase
from .systems import Schedule, as_other_system
from .work import ALL, Attention, Parts, Product, Work

DTYPES = {2: torch.bfloat16, 4: torch.float32}  # by bytes per value
FP32 = 4


@dataclass(frozen=True, kw_only=True)
class Share:
    """The busiest rank's share.

    Attributes:
        tokens: Rows of the sequence.
        block: Rows of its Ulysses group, over which its heads attend.
        heads: Heads in self-attention.
        total: Tokens of all ranks.
    """

    tokens: int
    block: int
    heads: int
    total: int

    @classmethod
    def of(cls, mesh: Mesh, tokens: int, heads: int) -> "Share":
        """Compute rank 0's share."""
        sizes = shares(tokens, mesh.world)
        return cls(
            tokens=sizes[0],
            block=sum(sizes[: mesh.ulysses]),
            heads=shares(heads, mesh.ulysses)[0],
            total=tokens,
        )


@cache
def step_work(
    config: DiTConfig,
    grid: tuple[int, int, int],
    share: Share,
    schedule: Schedule,
    *,
    itemsize: int,
    fp8: bool = False,
) -> Parts:
    """Compute the work of one forward pass of the transformer.

    Copies and casts outside ops, 0.1 % of a step, are ignored.

    Args:
        config: Shape of the transformer.
        grid: Tokens in frames, rows and columns.
        share: The rank's share.
        schedule: How the system works.
        itemsize: Bytes per value.
        fp8: Whether the blocks' linear layers are in FP8.
    """
    phase = _phase(config, grid, DENOISE, itemsize=itemsize, fp8=fp8)
    part = share.tokens / math.prod(grid)
    linears = _products(phase, math.prod(grid), share.tokens)
    parts = {
        LINEARS: Work(products=tuple(linears)),
        ATTENTION: Work(attentions=tuple(_self_attentions(phase, share))),
        CROSS: Work(attentions=tuple(_cross_attentions(phase, share.tokens))),
        NORMS: Work(
            bytes=part * sum(_bytes(call) * n for call, n in _of_kind(phase, NORMS)),
            calls=phase.calls.total() + phase.launches,
        ),
        ACTIVATIONS: Work(bytes=part * phase.activated),
    }
    parts = as_other_system(parts, config, share.tokens, schedule, itemsize=itemsize, fp8=fp8)
    if not schedule.once:
        parts[LINEARS] += session_work(config, grid, 0, itemsize=itemsize)
        if schedule.audio:
            parts[LINEARS] += audio_work(config, grid, grid[0], itemsize=itemsize)
    return parts


def session_work(
    config: DiTConfig,
    grid: tuple[int, int, int],
    rows: int,
    *,
    itemsize: int,
    fp8: bool = False,
    steps: int = 1,
) -> Work:
    """Compute the work that is done once per session.

    Embedding text and image with their keys and values in all layers, entirely on each rank; the
    schedule's modulations; and the patch embedding of the constant channels of ``rows`` tokens.
    """
    phase = _phase(config, grid, PREPARE, itemsize=itemsize, fp8=fp8)
    products = _products(phase, math.prod(grid), rows)
    normed = sum(_bytes(call) * count for call, count in _of_kind(phase, NORMS))
    return Work(
        products=tuple(
            replace(part, rows=steps) if part.rows == 1 else part for part in products if part.rows
        ),
        bytes=float(normed),
        calls=phase.calls.total() + phase.launches,
    )


def audio_work(
    config: DiTConfig, grid: tuple[int, int, int], frames: int, *, itemsize: int
) -> Work:
    """Count a chunk's audio tokens, and their keys and values for some latent frames."""
    phase = _phase(config, grid, AUDIO_KV, itemsize=itemsize)
    tokens = config.context_tokens
    return Work(
        products=tuple(_products(phase, grid[0] * tokens, frames * tokens)),
        calls=phase.calls.total() + phase.launches,
    )


def audio_encoder_work(config: AudioEncoderConfig) -> Parts:
    """Compute the work of the encoder over its whole window, in fp32."""
    phase = record_audio(config, "cuda").phases[AUDIO]
    return {ALL: Work(products=tuple(_products(phase, 0, 0)), calls=float(phase.launches))}


def _phase(
    config: DiTConfig,
    grid: tuple[int, int, int],
    name: str,
    *,
    itemsize: int,
    fp8: bool = False,
) -> Phase:
    found = record_transformer(config, grid, device="cuda", dtype=DTYPES[itemsize], fp8=fp8)
    return found.phases[name]


def _products(phase: Phase, whole: int, rows: int) -> Iterable[Product]:
    """Yield the products of a phase, with ``rows`` rows instead of ``whole``."""
    found = []
    for part, count in phase.products.items():
        found.append(
            Product(
                rows=part.rows,
                columns=part.columns,
                depth=part.depth,
                count=count,
                itemsize=part.itemsize,
            )
        )
    for call, count in _of_kind(phase, LINEARS):
        m, n, k = (call.case.dims[letter] for letter in "MNK")
        found.append(
            Product(
                rows=m, columns=n, depth=k, count=count, itemsize=call.case.dtype.itemsize, fp8=True
            )
        )
    return [replace(part, rows=rows) if part.rows == whole else part for part in found]


def _self_attentions(phase: Phase, share: Share) -> Iterable[Attention]:
    for call, count in _of_kind(phase, ATTENTION):
        yield Attention(
            queries=share.block,
            keys=share.total,
            heads=share.heads,
            width=call.case.dims["d"],
            count=count,
            itemsize=call.case.dtype.itemsize,
        )


def _cross_attentions(phase: Phase, rows: int) -> Iterable[Attention]:
    """Yield one per softmax: over text, image or a frame's audio."""
    for call, count in _of_kind(phase, CROSS):
        dims = call.case.dims
        for letter in "SI":
            if letter in dims:
                yield Attention(
                    queries=rows,
                    keys=dims[letter],
                    heads=dims["H"],
                    width=dims["d"],
                    count=count,
                    itemsize=call.case.dtype.itemsize,
                )


def _of_kind(phase: Phase, kind: str) -> Iterable[tuple[Call, int]]:
    return ((call, count) for call, count in phase.calls.items() if call.kind == kind)


def _bytes(call: Call) -> int:
    return call.cost.bytes
