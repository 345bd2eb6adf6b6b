"""Work of VAE and colour correction on a rank's part of the picture, from a dry run of one picture.

That is so large that sizes derived from its rows or columns are distinguishable from all others,
and can be converted to any other picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from livetalk_kernels.runtime.slices import Slices
from livetalk_kernels.spec import ATTENTION, CONVOLUTIONS, NORMS

from ..config import VAEConfig
from ..dry_run.record import (
    COLOUR,
    DECODE,
    ENCODE,
    NEXT,
    SECOND,
    TO_HOST,
    WARM,
    record_vae,
)
from ..dry_run.recorder import Call, Phase
from ..dry_run.work import NEW_LATENTS, slice_messages
from ..vae import SPATIAL
from .dit_work import DTYPES
from .work import ALL, GAPS, Attention, Parts, Product, Work

FIRST = "first latents"
_ROWS, _COLUMNS = 1 << 12, 1 << 24  # of the recorded latent: no other size is as large
_AREA = _ROWS * _COLUMNS


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage of the VAE, for latents of any size.

    Attributes:
        phases: What it consists of, and how often.
    """

    phases: tuple[tuple[Phase, int], ...]

    @property
    def frames(self) -> int:
        """Frames in which pixels attend to each other."""
        return sum(count * call.case.dims["B"] for call, count in self._of_kind(ATTENTION))

    @property
    def convolutions(self) -> int:
        """Number of calls."""
        return sum(count for _, count in self._of_kind(CONVOLUTIONS))

    def work(
        self,
        rows: int,
        columns: int,
        *,
        keys: int | None = None,
        itemsize: int,
        dense: bool = False,
    ) -> Parts:
        """Compute the work on a slice of the latent.

        Args:
            rows: Rows of the slice.
            columns: Columns of the slice.
            itemsize: Bytes per value.
            keys: Pixels of the whole latent; by default those of the slice.
            dense: Count taps on zero frames too.
        """
        if not self.phases:
            return {}
        pixels = rows * columns
        convolutions, norms, attention, gaps = Work(), Work(), Work(), Work()
        for phase, times in self.phases:
            for call, count in phase.calls.items():
                sized, calls = call.resized(lambda n: _sized(n, rows, columns)), count * times
                if call.kind == CONVOLUTIONS:
                    counted = _dense(sized) if dense else sized
                    convolutions += Work(
                        conv_flops=counted.cost.flops, conv_bytes=sized.cost.bytes, calls=1
                    ).times(calls)
                elif call.kind == NORMS:
                    norms += Work(bytes=sized.cost.bytes, calls=1).times(calls)
                else:
                    dims = sized.case.dims
                    attention += Work(
                        attentions=(
                            Attention(
                                queries=pixels,
                                keys=keys or pixels,
                                heads=1,
                                width=dims["d"],
                                count=dims["B"] * calls,
                                itemsize=itemsize,
                            ),
                        ),
                        calls=calls,
                    )
            products = [
                Product(
                    rows=_sized(part.rows, rows, columns),
                    columns=part.columns,
                    depth=part.depth,
                    count=count * times,
                    itemsize=itemsize,
                )
                for part, count in phase.products.items()
            ]
            share = times * pixels / _AREA
            convolutions += Work(spared_bytes=2.0 * share * phase.unbiased * itemsize)
            gaps += Work(
                # The products around attention are not an op, so profiles attribute them here, too.
                products=tuple(products),
                bytes=share * phase.moved,
                calls=times * phase.launches,
            )
        return {CONVOLUTIONS: convolutions, NORMS: norms, ATTENTION: attention, GAPS: gaps}

    def messages(self, slices: Slices, rank: int, itemsize: int) -> dict[str, int]:
        """Count the bytes that a rank sends, like `slice_messages`."""
        found = {"halo": 0, "gather": 0}
        for phase, times in self.phases:
            sent = slice_messages(phase, slices, rank, itemsize)
            found = {kind: found[kind] + times * sent[kind] for kind in found}
        return found

    def _of_kind(self, kind: str) -> list[tuple[Call, int]]:
        return [
            (call, count * times)
            for phase, times in self.phases
            for call, count in phase.calls.items()
            if call.kind == kind
        ]


def vae_stage(
    config: VAEConfig, name: str, *, reuse: bool, itemsize: int = 2, fuse_bias: bool = False
) -> Stage:
    """Record a stage of a later chunk (decode, warm decoder, encode), or of the first.

    Args:
        config: Widths.
        name: ``decode``, ``warm decoder``, ``encode``; or ``first latents``: what the first chunk
            decodes up to its first new frames. The published schedule decodes everything from the
            first latent, and warms up nothing.
        reuse: Schedule (see `VAE`).
        itemsize: Bytes per value.
        fuse_bias: See `VAE`.
    """
    found = _recorded(config, itemsize, reuse=reuse, fuse_bias=fuse_bias)
    warm = ((found[WARM], 1),)
    decode = (found[SECOND], 1), (found[DECODE], NEW_LATENTS - 1)
    stages = {
        DECODE: decode if reuse else warm + decode,
        WARM: warm if reuse else (),
        ENCODE: ((found[ENCODE], 1),),
        FIRST: ((found[NEXT], 1), (found[SECOND], 1)),
    }
    return Stage(phases=stages[name])


@cache
def vae_work(
    config: VAEConfig,
    name: str,
    size: tuple[int, int],
    *,
    keys: int,
    itemsize: int,
    reuse: bool,
    fuse_bias: bool,
) -> Parts:
    """Compute `Stage.work`, once per size: ``size`` is rows and columns of the slice."""
    stage = vae_stage(config, name, reuse=reuse, itemsize=itemsize, fuse_bias=fuse_bias)
    return stage.work(*size, keys=keys, itemsize=itemsize)


@cache
def vae_messages(
    config: VAEConfig, name: str, slices: Slices, *, itemsize: int
) -> Mapping[str, int]:
    """Count the bytes of a stage of ours, once per slicing, on the rank that sends the most halo.

    A search forecasts every grid with every mesh and precision, none of which matters here.
    """
    stage = vae_stage(config, name, reuse=True, itemsize=itemsize)
    everyone = (stage.messages(slices, rank, itemsize) for rank in range(slices.grid.world))
    return max(everyone, key=lambda sent: sent["halo"])


def colour_work(config: VAEConfig, pixels: int, *, itemsize: int) -> Mapping[str, Parts]:
    """Count the work of ``colour`` and ``to host`` for a chunk's new frames of ``pixels`` each."""
    found = _recorded(config, itemsize, reuse=True, fuse_bias=False)
    share = NEW_LATENTS * pixels / (_AREA * SPATIAL**2)
    return {
        name: {
            ALL: Work(
                bytes=share * found[name].moved, calls=float(NEW_LATENTS * found[name].launches)
            )
        }
        for name in (COLOUR, TO_HOST)
    }


def _recorded(
    config: VAEConfig, itemsize: int, *, reuse: bool, fuse_bias: bool
) -> Mapping[str, Phase]:
    return record_vae(
        config,
        (_ROWS, _COLUMNS),
        device="cuda",
        dtype=DTYPES[itemsize],
        reuse=reuse,
        fuse_bias=fuse_bias,
    ).phases


def _sized(number: int, rows: int, columns: int) -> int:
    """Convert a size in the recorded picture to another picture."""
    area, rest = divmod(number, _AREA)
    across, rest = divmod(rest, _COLUMNS)
    down, rest = divmod(rest, _ROWS)
    return area * rows * columns + across * columns + down * rows + rest


def _dense(call: Call) -> Call:
    """Count a convolution's zero frames as frames."""
    case = call.case
    zeros = case.options.get("zero_frames", 0)
    options = {key: value for key, value in case.options.items() if key != "zero_frames"}
    return Call(replace(case, dims={**case.dims, "t": case.dims["t"] + zeros}, options=options))
