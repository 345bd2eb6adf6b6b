"""Work of the VAE and of colour on one rank's part of the picture.

What runs is read off the code itself: it runs on the meta device, where nothing is calculated, on
ops that note their calls. FLOPs and bytes of a layer are polynomials of first degree in the rows
and in the columns of the latent (a folded upsampling has a border of one), so four small pictures
determine them for every size. Attention, whose keys are the pixels of the whole picture, is counted
by formula.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from livetalk_kernels.bench.calls import case_of
from livetalk_kernels.dispatch import Choice
from livetalk_kernels.ops import Ops
from livetalk_kernels.registry import OPS_PACKAGE, load_op, op_names
from livetalk_kernels.spec import ATTENTION, CONVOLUTIONS, NORMS, Case, Cost

from ..calls import CONV_DEFAULTS, META
from ..color import ColorStats, match_color
from ..config import FRAMES_PER_LATENT, LATENT_FRAMES, MOTION_FRAMES, MOTION_LATENTS, VAEConfig
from ..vae import COLORS, SPATIAL, VAE, DecoderCache
from .work import ALL, GAPS, Attention, Parts, Product, Work

DECODE, WARM, ENCODE, FIRST = "decode", "warm decoder", "encode", "first latents"
_SIZES = ((1, 1), (1, 2), (2, 1), (2, 2))  # of the latents whose work is noted
_CONV, _ATTENTION = "causal_conv3d", "chunk_attention"
_BYTES = ("conv_bytes", "spared_bytes", "norm_bytes", "other_bytes")
_SUMS = ("conv_flops", "dense_flops", "linear_flops", *_BYTES)
_PARTS = (CONVOLUTIONS, NORMS, ATTENTION, GAPS)
_BIAS = 3  # of the convolution's positional arguments
FP32 = 4


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the VAE, for latents of any size.

    Attributes:
        conv_flops: Coefficients of 1, rows, columns and rows x columns: FLOPs of convolutions.
        dense_flops: The same with the taps on zero frames, which the reference computes.
        conv_bytes: Bytes of convolutions, likewise.
        spared_bytes: Of passes for biases that convolutions leave to others (see `Work`).
        norm_bytes: Of norms, and of residual sums that are an op.
        linear_flops: FLOPs of the products around the attention.
        other_bytes: Of what is no op: joins, copies, sums.
        frames: Frames in which pixels attend to each other.
        width: Channels of that attention.
        calls: Launches by part.
    """

    conv_flops: tuple[float, ...]
    dense_flops: tuple[float, ...]
    conv_bytes: tuple[float, ...]
    spared_bytes: tuple[float, ...]
    norm_bytes: tuple[float, ...]
    linear_flops: tuple[float, ...]
    other_bytes: tuple[float, ...]
    frames: int
    width: int
    calls: Mapping[str, int]

    def work(
        self,
        rows: int,
        columns: int,
        *,
        keys: int | None = None,
        itemsize: int,
        dense: bool = False,
    ) -> Parts:
        """Work on a slice of the latent.

        Args:
            rows: Of the slice.
            columns: Of the slice.
            itemsize: Bytes of a number.
            keys: Pixels of the whole latent; by default those of the slice.
            dense: Count taps on zero frames.
        """

        def at(coefficients: tuple[float, ...]) -> float:
            return sum(a * b for a, b in zip(coefficients, _powers(rows, columns), strict=True))

        if not self.frames:
            return {}
        pixels = rows * columns
        around = at(self.linear_flops)  # q, k, v and the projection: depth and width are equal
        product = Product(
            rows=pixels * self.frames,
            columns=round(around / (2 * pixels * self.frames * self.width)),
            depth=self.width,
            itemsize=itemsize,
        )
        attention = Attention(
            queries=pixels,
            keys=keys or pixels,
            heads=1,
            width=self.width,
            count=self.frames,
            itemsize=itemsize,
        )
        return {
            CONVOLUTIONS: Work(
                conv_flops=at(self.dense_flops if dense else self.conv_flops),
                conv_bytes=at(self.conv_bytes) * itemsize,
                spared_bytes=at(self.spared_bytes) * itemsize,
                calls=self.calls[CONVOLUTIONS],
            ),
            NORMS: Work(bytes=at(self.norm_bytes) * itemsize, calls=self.calls[NORMS]),
            ATTENTION: Work(attentions=(attention,), calls=self.calls[ATTENTION]),
            # The products around the attention are no op, so a profile has them here, too.
            GAPS: Work(
                products=(product,),
                bytes=at(self.other_bytes) * itemsize,
                calls=self.calls[GAPS],
            ),
        }


@cache
def vae_stage(config: VAEConfig, name: str, *, reuse: bool, fuse_bias: bool = False) -> Stage:
    """A stage of a chunk that is not the first: decode, warm decoder, encode; or of the first.

    Args:
        config: Widths.
        name: ``decode``, ``warm decoder``, ``encode``; or ``first latents``: what the first chunk
            decodes up to its first new frames. In the published schedule everything is decoded
            from the first latent, and nothing is warmed.
        reuse: Schedule (see `VAE`).
        fuse_bias: The same.
    """
    return _stage([_run(config, name, size, reuse=reuse, fuse_bias=fuse_bias) for size in _SIZES])


@cache
def colour_work(pixels: int, *, itemsize: int) -> Mapping[str, Parts]:
    """``colour`` and ``to host`` of a chunk's new frames, of so many pixels each."""
    from ..stream.chunk import to_uint8

    latents = LATENT_FRAMES - MOTION_LATENTS
    stats = ColorStats(mean=torch.empty(3, device=META), std=torch.empty(3, device=META))
    frames = torch.empty(1, COLORS, FRAMES_PER_LATENT, 1, pixels, device=META)
    found = {}
    for name, run in (
        ("colour", lambda: match_color(frames.to(_DTYPES[itemsize]), stats, 1.0)),
        ("to host", lambda: to_uint8(frames[0].to(_DTYPES[itemsize]))),
    ):
        with _Counter() as counter:
            run()
        found[name] = {
            ALL: Work(bytes=counter.bytes * latents, calls=float(counter.calls * latents))
        }
    return found


_DTYPES = {2: torch.bfloat16, 4: torch.float32}


class _Counter(TorchDispatchMode):
    """Counts bytes, launches and FLOPs of everything that is no view; not of what ops do inside.

    Attributes:
        bytes: Read and written.
        flops: Of products.
        calls: Launches.
        paused: Nothing is counted.
    """

    def __init__(self) -> None:
        """Nothing has run."""
        super().__init__()
        self.bytes = self.flops = 0.0
        self.calls = 0
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count it."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if self.paused or func.is_view or "empty" in str(packet):
            return out
        self.calls += 1
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        else:
            self.bytes += sum(_nbytes(value) for value in (*args, *kwargs.values(), out))
        return out


def _nbytes(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.itemsize
    return sum(map(_nbytes, value)) if isinstance(value, list | tuple) else 0


class _Note:
    """What a stage takes on one small picture, in fp32."""

    def __init__(self) -> None:
        """Nothing so far."""
        self.sums: dict[str, float] = dict.fromkeys(_SUMS, 0.0)
        self.calls: dict[str, int] = {CONVOLUTIONS: 0, NORMS: 0, ATTENTION: 0}
        self.frames = self.width = 0
        self.counter = _Counter()

    def ops(self) -> Ops:
        """Ops that note each call and give the contract's empty outputs."""

        def noting(op: str) -> Choice:
            contract = importlib.import_module(f"{OPS_PACKAGE}.{op}")
            # A schema has no defaults for lists, so the contract's own are not among the arguments.
            defaults = CONV_DEFAULTS if op == _CONV else {}

            def run(*arguments: Any, **keywords: Any) -> Any:
                case = case_of(op, META, torch.float32, arguments, keywords)
                self._take(case, contract.OP.cost(case))
                self.counter.paused = True
                out = contract.empty_outputs(*arguments, **(defaults | keywords))
                self.counter.paused = False
                if op == _CONV and arguments[_BIAS] is None:
                    self.sums["spared_bytes"] += 2 * _nbytes(out)  # read and written
                return out

            return Choice(
                name="recorder", run=run, pack=lambda weight: None, approximate=False, reason=""
            )

        return Ops({op: noting(op) for op in op_names()})

    def _take(self, case: Case, cost: Cost) -> None:
        if case.op == _CONV:
            self.sums["conv_flops"] += cost.flops
            zeros = {key: value for key, value in case.options.items() if key != "zero_frames"}
            dims = {**case.dims, "t": case.dims["t"] + case.options.get("zero_frames", 0)}
            dense = dataclasses.replace(case, dims=dims, options=zeros)
            self.sums["dense_flops"] += load_op(_CONV).cost(dense).flops
            self.sums["conv_bytes"] += cost.bytes
            self.calls[CONVOLUTIONS] += 1
        elif load_op(case.op).kind == NORMS:
            self.sums["norm_bytes"] += cost.bytes
            self.calls[NORMS] += 1
        else:
            assert case.op == _ATTENTION, case.op
            self.frames += case.dims["B"]
            self.width = case.dims["d"]
            self.calls[ATTENTION] += 1


def _run(
    config: VAEConfig, name: str, size: tuple[int, int], *, reuse: bool, fuse_bias: bool
) -> _Note:
    note, how = _Note(), {"reuse": reuse, "fuse_bias": fuse_bias}
    vae = _vae(config, note, **how)
    rows, columns = size
    z = torch.empty(1, config.z_dim, LATENT_FRAMES, rows, columns, device=META)
    state = DecoderCache()
    # What was warmed before is none of the stage's work; the portrait's latent, with the session.
    warmed = {DECODE: MOTION_LATENTS, FIRST: 1}.get(name, 0) if reuse else 0
    if warmed:
        _vae(config, _Note(), **how).warm(z[:, :, :warmed], state)
    with note.counter:
        if name == ENCODE:
            pixels = SPATIAL * rows, SPATIAL * columns
            vae.encode(torch.empty(1, COLORS, MOTION_FRAMES, *pixels, device=META))
        elif name == WARM and reuse:
            vae.warm(z[:, :, :MOTION_LATENTS], state)
        elif name == FIRST:
            vae.warm(z[:, :, 1:MOTION_LATENTS], state)
            vae.decode_step(z[:, :, MOTION_LATENTS : MOTION_LATENTS + 1], state)
        elif name == DECODE:
            for index in range(MOTION_LATENTS if reuse else 0, LATENT_FRAMES):
                vae.decode_step(z[:, :, index : index + 1], state)
    note.sums["linear_flops"], note.sums["other_bytes"] = note.counter.flops, note.counter.bytes
    return note


def _vae(config: VAEConfig, note: _Note, **how: bool) -> VAE:
    with META:
        vae = VAE(config, note.ops(), **how)
    vae.prepare()
    return vae


def _stage(notes: list[_Note]) -> Stage:
    matrix = np.array([_powers(*size) for size in _SIZES])
    coefficients = {
        name: tuple(np.linalg.solve(matrix, [note.sums[name] for note in notes]).tolist())
        for name in _SUMS
    }
    for name in _BYTES:
        coefficients[name] = tuple(value / FP32 for value in coefficients[name])
    note = notes[0]
    own = sum(note.calls.values())
    return Stage(
        **coefficients,
        frames=note.frames,
        width=note.width,
        calls={**note.calls, GAPS: note.counter.calls} if own else dict.fromkeys(_PARTS, 0),
    )


def _powers(rows: int, columns: int) -> tuple[int, int, int, int]:
    return 1, rows, columns, rows * columns
