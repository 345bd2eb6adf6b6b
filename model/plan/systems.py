"""How other systems differ from livetalk: adjustments to its recorded step."""

from dataclasses import dataclass, replace

from livetalk_kernels.gpus import BEST
from livetalk_kernels.spec import CROSS, LINEARS, NORMS

from ..config import DiTConfig
from .work import Parts, Product, Work

ROPE_BYTES = 36  # per element of q or k via complex128: bf16 -> fp64, times the table, -> bf16
ROPE_FP64 = 7  # operations per element, conversions counted as one multiply-add each
ROPE_LAUNCHES = 8  # per block, in addition to the norms'


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How a system works, and what it repeats; the defaults are livetalk's.

    Attributes:
        once: Compute constants once: text and image K/V, audio K/V of a chunk, modulation, RoPE
            tables, decoder state. Otherwise in every step, and in full on every rank.
        fused_rope: Use one fp32 kernel for norm and rotation; otherwise rotate in complex128
            outside the compiler.
        attention: Kernel of self-attention, a key of `livetalk_kernels.gpus.Gpu.attention`.
        overlap: Exchange heads in groups concurrently with attention, and encode audio on a side
            stream.
        tiles: Run the VAE on overlapping tiles that are cropped; otherwise exchange halos.
        pageable: Copy frames to the host as fp32 through pageable memory.
        audio: The model uses audio. Wan2.1 does not.
        forwards: Forward passes per step; 2 with classifier-free guidance.
        fuse_bias: Add biases of the VAE's residual blocks in other passes.
    """

    once: bool = True
    fused_rope: bool = True
    attention: str = BEST
    overlap: bool = True
    tiles: bool = False
    pageable: bool = False
    audio: bool = True
    forwards: int = 1
    fuse_bias: bool = False


def as_other_system(
    parts: Parts, config: DiTConfig, rows: int, schedule: Schedule, *, itemsize: int, fp8: bool
) -> dict[str, Work]:
    """Convert our step to another schedule, without what that repeats.

    Args:
        parts: Parts of our step.
        config: Shape of the transformer.
        rows: Tokens of the rank.
        schedule: The other system's.
        itemsize: Bytes per value.
        fp8: Whether the blocks' linear layers are in FP8.
    """
    found, dim, layers = dict(parts), config.dim, config.num_layers
    elements = layers * rows * dim
    if not schedule.audio:
        products = tuple(
            replace(part, count=part.count - 2 * layers) if _square(part) else part
            for part in found[LINEARS].products
        )
        found[LINEARS] = replace(found[LINEARS], products=products)
        kept = (part for part in found[CROSS].attentions if part.keys != config.context_tokens)
        found[CROSS] = replace(found[CROSS], attentions=tuple(kept))
        seam = 3 * itemsize + 1 + itemsize + 1 if fp8 else 4 * itemsize
        found[NORMS] = replace(found[NORMS], bytes=found[NORMS].bytes - elements * seam)
    if not schedule.once:
        found[LINEARS] = replace(
            found[LINEARS], products=tuple(map(_split_qkv, found[LINEARS].products))
        )
    if not schedule.fused_rope:
        found[NORMS] += Work(
            bytes=2.0 * elements * ROPE_BYTES,
            fp64=2.0 * elements * ROPE_FP64,
            calls=layers * ROPE_LAUNCHES,
        )
    return found


def _split_qkv(part: Product) -> Product:
    """Split the fused product into three; leave others unchanged."""
    if part.columns != 3 * part.depth:
        return part
    return replace(part, columns=part.depth, count=3 * part.count)


def _square(part: Product) -> bool:
    return part.columns == part.depth
