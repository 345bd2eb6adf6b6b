"""Amounts of work, independent of a machine: products, attention, convolutions, bytes, calls.

A stage is a mapping from its parts to the work in them. Stages and parts are named as in a
``livetalk profile`` report.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

GAPS, ALL = "gaps", "all"


@dataclass(frozen=True, kw_only=True)
class Product:
    """Matrix products of one shape.

    Attributes:
        rows: Rows of the left operand.
        columns: Columns of the result.
        depth: Length of the sums.
        count: Number of products.
        itemsize: Bytes per element of the operands.
        fp8: Whether operands are FP8.
    """

    rows: int
    columns: int
    depth: int
    count: int = 1
    itemsize: int = 2
    fp8: bool = False

    @property
    def flops(self) -> float:
        """Operations of all of them; a multiply-add is two."""
        return 2.0 * self.rows * self.columns * self.depth * self.count

    @property
    def bytes(self) -> float:
        """Bytes of both operands and the result, once each, for all of them."""
        operands = (self.rows + self.columns) * self.depth * (1 if self.fp8 else self.itemsize)
        return float(self.count * (operands + self.rows * self.columns * self.itemsize))


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Attentions of one shape.

    Attributes:
        queries: Rows per head.
        keys: Keys per head.
        heads: Heads.
        width: Channels per head.
        count: Number of attentions.
        itemsize: Bytes per element.
    """

    queries: int
    keys: int
    heads: int
    width: int
    count: int = 1
    itemsize: int = 2

    @property
    def flops(self) -> float:
        """Operations of both products, for all of them."""
        return 4.0 * self.queries * self.keys * self.heads * self.width * self.count

    @property
    def bytes(self) -> float:
        """Bytes of q, k, v and the result, once each, for all of them."""
        rows = 2 * (self.queries + self.keys)
        return float(rows * self.heads * self.width * self.itemsize * self.count)


@dataclass(frozen=True, kw_only=True)
class Work:
    """Work of one part of a stage.

    Attributes:
        products: Matrix products.
        attentions: Attentions.
        conv_flops: FLOPs of convolutions.
        conv_bytes: Bytes that they read and write.
        spared_bytes: Further bytes that a GPU's library would read and write to add biases that
            are left to others, in separate passes. Every measured convolution share includes them.
            On a CPU a bias takes no pass.
        bytes: Bytes that everything else reads and writes.
        fp64: Operations in double precision.
        calls: Number of kernel launches.
    """

    products: tuple[Product, ...] = ()
    attentions: tuple[Attention, ...] = ()
    conv_flops: float = 0.0
    conv_bytes: float = 0.0
    spared_bytes: float = 0.0
    bytes: float = 0.0
    fp64: float = 0.0
    calls: float = 0.0

    @property
    def flops(self) -> float:
        """Operations of products, attention and convolutions."""
        products = sum(product.flops for product in self.products)
        return products + sum(part.flops for part in self.attentions) + self.conv_flops

    def __add__(self, other: "Work") -> "Work":
        """Add two amounts."""
        return Work(
            products=self.products + other.products,
            attentions=self.attentions + other.attentions,
            conv_flops=self.conv_flops + other.conv_flops,
            conv_bytes=self.conv_bytes + other.conv_bytes,
            spared_bytes=self.spared_bytes + other.spared_bytes,
            bytes=self.bytes + other.bytes,
            fp64=self.fp64 + other.fp64,
            calls=self.calls + other.calls,
        )

    def times(self, count: int) -> "Work":
        """Multiply by a count."""
        return Work(
            products=tuple(replace(part, count=part.count * count) for part in self.products),
            attentions=tuple(replace(part, count=part.count * count) for part in self.attentions),
            conv_flops=self.conv_flops * count,
            conv_bytes=self.conv_bytes * count,
            spared_bytes=self.spared_bytes * count,
            bytes=self.bytes * count,
            fp64=self.fp64 * count,
            calls=self.calls * count,
        )


Parts = Mapping[str, Work]


def total(parts: Iterable[Work]) -> Work:
    """Sum all parts."""
    result = Work()
    for part in parts:
        result += part
    return result


def join(*stages: Parts) -> dict[str, Work]:
    """Join consecutive stages, part by part."""
    found: dict[str, Work] = {}
    for stage in stages:
        for name, work in stage.items():
            found[name] = found.get(name, Work()) + work
    return found
