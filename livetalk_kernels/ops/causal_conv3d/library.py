"""``causal_conv3d`` on PyTorch's convolution library (oneDNN, cuDNN), with less work.

Zero frames are not convolved: outputs that would see them use the remaining taps only. Kernels of
one frame run as 2-D convolutions over all frames at once. Symmetric padding is left to the library;
a history and any other padding are copied once, together with the new frames. Kernels with few
channels on one side fold time into them.

On CUDA fp32 is multiplied as fp32, not TF32.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ...backends.cpu import product_dtype
from ...precision import HALF_DTYPES
from ...spec import Case

DIFFERENTIABLE = True


# oneDNN processes channels a vector register at a time (16 fp32 values with AVX-512) and wastes the
# remainder; three frames of at most five channels, folded into one, fill it better.
FEW_CHANNELS = 16
FAST_CUDNN = "9.15"  # torch itself avoids older ones for 16-bit 3-D convolutions
NO_BORDER = (0, 0, 0, 0)
Convolve = Callable[[Tensor, Tensor, Tensor | None, Sequence[int], Sequence[int]], Tensor]


def supports(case: Case) -> str | None:
    """Accept whatever PyTorch can convolve."""
    return None


def caution(case: Case) -> str | None:
    """Warn if cuDNN would be slow."""
    if case.device.type != "cuda" or case.dtype not in HALF_DTYPES:
        return None
    reason = case.libraries.too_old("cudnn", FAST_CUDNN)
    return reason and f"slow, since older cuDNN has no fast 16-bit 3-D convolution: {reason}"


def workspace(case: Case) -> int:
    """Count the joined or folded frames, and what the library copies on a CPU."""
    d, item = case.dims, case.dtype.itemsize
    zeros = case.options.get("zero_frames", 0)
    stride = case.options.get("stride", (1, 1, 1))
    top, bottom, left, right = case.options.get("padding", NO_BORDER)
    symmetric = (top, left) == (bottom, right)
    frames, taps = d["t"] + d["T"], d["kt"]
    count = (zeros + frames - taps) // stride[0] + 1
    pixels = d["B"] * (d["H"] + top + bottom) * (d["W"] + left + right)
    inner = d["B"] * d["H"] * d["W"] if symmetric else pixels
    made = d["B"] * d["O"] * count
    for size, border, step in (
        (d["H"], top + bottom, stride[1]),
        (d["W"], left + right, stride[2]),
    ):
        made *= (size + border - d["k"]) // step + 1
    on_cpu = case.device.type == "cpu"
    fold = on_cpu and stride[0] == 1 and taps > 1
    joined = 0
    if fold and d["I"] * taps <= FEW_CHANNELS:
        joined = taps * d["I"] * count * inner * item
    elif fold and d["O"] * taps <= FEW_CHANNELS and case.dtype != torch.bfloat16:
        parts = taps * d["O"] * frames * (made // max(1, d["O"] * count))
        joined = 2 * parts * item  # every tap's part of every frame, separate and joined
    elif d["t"] or not symmetric:
        joined = d["I"] * frames * inner * item
    weight = d["O"] * d["I"] * taps * d["k"] ** 2
    windows = -(-zeros // stride[0])  # outputs that see zeros, each convolved separately
    # oneDNN reorders a weight, and packs a slice first.
    extra = [(on_cpu + (zeros > 0)) * weight * item]
    if 0 < windows < count or windows > 1:
        extra.append(made * item)  # the parts, while they are joined
    wide = product_dtype(case.device, case.dtype)
    if wide != case.dtype:  # operands and result widened, then the result in both
        numbers = d["I"] * frames * d["B"] * d["H"] * d["W"] + weight + made
        extra += [wide.itemsize * numbers - made * item, wide.itemsize * made]
    return joined + max(extra)


def run(
    x: Tensor,
    history: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    packed: Tensor | None = None,
    zero_frames: int = 0,
    stride: Sequence[int] = (1, 1, 1),
    padding: Sequence[int] = NO_BORDER,
) -> Tensor:
    """See the contract."""
    return convolve_video(
        x, history, weight, bias,
        zero_frames=zero_frames, stride=stride, padding=padding, by=convolve,
    )  # fmt: skip


def convolve_video(
    x: Tensor,
    history: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    *,
    zero_frames: int,
    stride: Sequence[int],
    padding: Sequence[int],
    by: Convolve,
) -> Tensor:
    """Compute the op with the convolution ``by``, which has the arguments of `convolve`."""
    pieces = [x] if history is None or history.shape[2] == 0 else [history, x]
    top, bottom, left, right = padding
    symmetric = (top, left) == (bottom, right)
    border, inner = (NO_BORDER, (top, left)) if symmetric else (tuple(padding), (0, 0))
    outputs, inputs, taps = weight.shape[:3]
    fold = x.is_cpu and stride[0] == 1 and taps > 1
    fold_inputs = fold and inputs * taps <= FEW_CHANNELS
    # partial sums are rounded before they are added, hence not for bf16
    fold_outputs = fold and outputs * taps <= FEW_CHANNELS and x.dtype != torch.bfloat16
    if not (fold_inputs or fold_outputs):
        pieces, border = [_join(pieces, border)], NO_BORDER

    def convolve_window(window: list[Tensor], taps_OIkkk: Tensor) -> Tensor:
        if fold_inputs:
            return _fold_inputs(window, taps_OIkkk, bias, stride[1:], border, inner)
        if fold_outputs:
            return _fold_outputs(window, taps_OIkkk, bias, stride[1:], border, inner)
        (frames,) = window
        if taps_OIkkk.shape[2] == 1:
            frames = frames[:, :, :: stride[0]]
            return _per_frame(frames, taps_OIkkk[:, :, 0], bias, stride[1:], inner, by)
        return by(frames, taps_OIkkk, bias, stride, (0, *inner))

    length = sum(piece.shape[2] for piece in pieces)
    count = (zero_frames + length - taps) // stride[0] + 1
    parts: list[Tensor] = []
    start = -zero_frames  # first frame that the next output sees
    while start < 0 and len(parts) < count:
        parts.append(convolve_window(_window(pieces, 0, start + taps), weight[:, :, -start:]))
        start += stride[0]
    if len(parts) < count:
        parts.append(convolve_window(_window(pieces, start, length), weight))
    return _join(parts, NO_BORDER)  # torch.cat would take a single frame for planar memory


def convolve(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Convolve in 2-D or 3-D with the library; ``stride`` and ``padding`` have as many entries.

    Without bf16 instructions PyTorch would use its own loops, in planar memory; avoid that.
    """
    wide = product_dtype(frames.device, frames.dtype)
    if wide != frames.dtype:
        offset = None if bias is None else bias.to(wide)
        return convolve(frames.to(wide), weight.to(wide), offset, stride, padding).to(frames.dtype)
    ones = (1,) * len(stride)
    if frames.dtype == torch.float32:
        if frames.is_cpu and torch.backends.mkldnn.is_available():
            # conv2d and conv3d process small tensors in PyTorch's own loops, which are far slower
            # than oneDNN at the sizes of a narrow VAE (8 channels of 4 x 64 x 64)
            return torch.mkldnn_convolution(frames, weight, bias, padding, stride, ones, 1)
        if frames.is_cuda and torch.backends.cudnn.is_available():
            search = torch.backends.cudnn.benchmark
            return by_cudnn(frames, weight, bias, stride, padding, search=search)
    if len(stride) == 2:
        return functional.conv2d(frames, weight, bias, stride, padding)
    return functional.conv3d(frames, weight, bias, stride, padding)


def by_cudnn(
    frames: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    search: bool,
) -> Tensor:
    """Convolve with cuDNN without TF32; ``search`` times its algorithms on the first call."""
    ones = (1,) * len(stride)
    out = torch.cudnn_convolution(
        frames, weight, padding, stride, ones, 1,
        benchmark=search, deterministic=True, allow_tf32=False,
    )  # fmt: skip
    return out if bias is None else out.add_(bias.view(-1, *ones))


def _window(pieces: list[Tensor], start: int, stop: int) -> list[Tensor]:
    """View frames [start, stop) of the concatenated ``pieces``."""
    views = []
    for piece in pieces:
        view = piece[:, :, max(start, 0) : max(stop, 0)]
        if view.shape[2]:
            views.append(view)
        start, stop = start - piece.shape[2], stop - piece.shape[2]
    return views


def _join(pieces: list[Tensor], border: Sequence[int]) -> Tensor:
    """Join all frames with zeros around them; copies only if something is added."""
    first = pieces[0]
    if len(pieces) == 1 and not any(border):
        return first
    length = sum(piece.shape[2] for piece in pieces)
    out = _empty(first, first.shape[1], length, border)
    _fill(out, pieces, border)
    return out


def _empty(x: Tensor, channels: int, frames: int, border: Sequence[int]) -> Tensor:
    """Allocate frames as large as x's with their border, in x's memory format."""
    top, bottom, left, right = border
    rows, columns = top + x.shape[3] + bottom, left + x.shape[4] + right
    planar = not x.permute(0, 2, 3, 4, 1).is_contiguous()
    layout = torch.contiguous_format if planar else torch.channels_last_3d
    shape = (x.shape[0], channels, frames, rows, columns)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _fill(out: Tensor, pieces: list[Tensor], border: Sequence[int]) -> None:
    """Write frames one after another, and zeros around them."""
    top, bottom, left, right = border
    rows, columns = out.shape[3] - bottom, out.shape[4] - right
    middle = out[..., top:rows, :]
    for side in (out[..., :top, :], out[..., rows:, :], middle[..., :left], middle[..., columns:]):
        if side.numel():
            side.zero_()
    start = 0
    for piece in pieces:
        stop = start + piece.shape[2]
        out[:, :, start:stop, top:rows, left:columns] = piece
        start = stop


def _per_frame(
    frames: Tensor,
    weight_OIkk: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    by: Convolve = convolve,
) -> Tensor:
    """Convolve each frame as an image."""
    images = frames.transpose(1, 2).flatten(0, 1)
    out = by(images, weight_OIkk, bias, stride, padding)
    return out.unflatten(0, (frames.shape[0], -1)).transpose(1, 2)


def _fold_inputs(
    pieces: list[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    border: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Fold few inputs: the frames that an output sees become channels of one image."""
    inputs, taps = weight.shape[1:3]
    count = sum(piece.shape[2] for piece in pieces) - taps + 1
    stacked = _empty(pieces[-1], taps * inputs, count, border)
    for tap in range(taps):
        part = stacked[:, tap * inputs : (tap + 1) * inputs]
        _fill(part, _window(pieces, tap, tap + count), border)
    return _per_frame(stacked, torch.cat(weight.unbind(2), dim=1), bias, stride, padding)


def _fold_outputs(
    pieces: list[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    border: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """Fold few outputs: each tap's part of an output is a separate channel, summed afterwards."""
    outputs, _, taps = weight.shape[:3]
    flat = torch.cat(weight.unbind(2), dim=0)
    frames = torch.cat(
        [_per_frame(_join([piece], border), flat, None, stride, padding) for piece in pieces], dim=2
    )
    parts, count = frames.split(outputs, dim=1), frames.shape[2] - taps + 1
    total = parts[0][:, :, :count]
    if bias is not None:
        total = total + bias.view(-1, 1, 1, 1)
    for tap in range(1, taps):
        total = total + parts[tap][:, :, tap : tap + count]
    return total
