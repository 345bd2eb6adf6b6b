"""Counter-based random weights: a value depends only on its key, the seed and its index.

So they can be drawn where needed, on any device and in pieces of any size, with the same bits. The
counter's hash is SplitMix64's (Steele, Lea and Flood, 2014) in torch's int64 operations, which wrap
around on CPUs and on GPUs; all floating-point operations are single ones, each rounded according to
IEEE 754. Untested on a GPU.
"""

import hashlib
import math

import torch
from torch import Tensor

RANDOM_SEED = 0  # for presets without a checkpoint
# Elements at a time: intermediates stay in a CPU's cache; a GPU needs long kernels.
PIECE = {"cpu": 1 << 17, "cuda": 1 << 26}
LEVELS = 8  # of 8 bits, in one 64-bit hash
_MASK = (1 << 64) - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

# Final parts of names: tensors that multiply a normalised value and are therefore near one.
_SCALES = ("gamma", "weight_g", "original0")


def random_weight(
    key: str, shape: tuple[int, ...], *, seed: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Draw one tensor: offset + scale * u, u uniform on 256 levels in (-1, 1).

    Keeps activations near one: matrices and kernels are in +-sqrt(3 / fan_in) (variance
    1 / fan_in), norm weights 1 +- 0.1, biases +- 0.05, modulations +- 0.1.

    Args:
        key: Name in the checkpoint; its last part and the shape determine offset and scale.
        shape: Shape.
        seed: Seed.
        dtype: Values are computed in float32 and rounded once.
        device: Device to draw it on.

    Returns:
        Tensor of that shape, contiguous.
    """
    out = torch.empty(shape, dtype=dtype, device=device)
    flat, (offset, scale) = out.view(-1), _distribution(key, shape)
    digest = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    start = int.from_bytes(digest, "little")
    piece = PIECE.get(device.type, PIECE["cpu"])
    for first in range(0, flat.numel(), piece):
        part = flat[first : first + piece]
        levels = random_bytes(start, first, part.numel(), device).float()
        part.copy_(levels.add_(0.5).mul_(scale / 128).add_(offset))
    return out


def random_bytes(start: int, first: int, count: int, device: torch.device) -> Tensor:
    """Draw int8 [count]: numbers ``first`` to ``first + count - 1`` of a stream.

    Number i is byte i % 8 of SplitMix64's output i // 8 for the state ``start``, lowest first.
    """
    begin, end = first // LEVELS, -(-(first + count) // LEVELS)
    x = torch.arange(begin, end, device=device).mul_(_signed(_STEP)).add_(_signed(start + _STEP))
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
        # int64's shift repeats the sign, which is masked away.
        x.bitwise_xor_((x >> shift).bitwise_and_((1 << (64 - shift)) - 1))
        if factor != 1:
            x.mul_(_signed(factor))
    skip = first % LEVELS
    return x.view(torch.int8)[skip : skip + count]


def _signed(value: int) -> int:
    """Convert the lowest 64 bits of a number to int64."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _distribution(key: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Return offset and half-width of a key's distribution."""
    kind = key.rpartition(".")[2]
    if kind in _SCALES or (kind == "weight" and len(shape) == 1):
        return 1.0, 0.1
    if kind == "modulation":
        return 0.0, 0.1
    if len(shape) < 2:
        return 0.0, 0.05
    return 0.0, math.sqrt(3 / math.prod(shape[1:]))
