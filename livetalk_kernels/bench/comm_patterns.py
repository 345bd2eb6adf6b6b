"""Messages between ranks while a stream is made: source, target and bytes.

Pure arithmetic from the model's sizes, a mesh and a grid: every rank knows all messages.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..runtime.mesh import Grid, Mesh, shares

FP32 = 4  # bytes: audio windows, and what a step predicts
COLORS = 3
# VAE levels, from latents to pixels: rows and columns per latent, channels in units of its width,
# frames per latent. The encoder has the same levels in reverse.
LEVELS = ((1, 4, 1), (2, 4, 2), (4, 2, 4), (8, 1, 4))
PIXELS, _, FRAMES = LEVELS[-1]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What determines the sizes of messages.

    Attributes:
        tokens: Tokens per chunk.
        heads: Attention heads.
        head_dim: Channels per head.
        outputs: Values that a step predicts per token.
        windows: Values in a chunk's audio windows.
        latent: Rows and columns of a latent.
        vae_dim: Channels of the VAE at full resolution.
        itemsize: Bytes per value of the model's dtype.
    """

    tokens: int
    heads: int
    head_dim: int
    outputs: int
    windows: int
    latent: tuple[int, int]
    vae_dim: int
    itemsize: int


class Message(NamedTuple):
    """A number of bytes from one rank to another."""

    source: int
    target: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Messages that are in flight at the same time.

    Attributes:
        name: Display name, at most 31 characters.
        kind: Purpose, as in `Traffic`; ``broadcast`` is one collective, others are exchanges.
        messages: Of all ranks. Those between two ranks keep their order; none is empty.
    """

    name: str
    kind: str
    messages: tuple[Message, ...]

    @property
    def sent(self) -> Counter[int]:
        """Rank -> bytes sent."""
        return _sum((message.source, message.bytes) for message in self.messages)

    @property
    def received(self) -> Counter[int]:
        """Rank -> bytes received."""
        return _sum((message.target, message.bytes) for message in self.messages)

    @property
    def bytes(self) -> int:
        """Bytes per rank: what the busiest direction of the busiest rank must carry.

        Divided by the time, this is what NCCL's tests call the bus bandwidth. A broadcast crosses
        each
        link once, as ranks may forward it.
        """
        directions = [self.received] if self.kind == "broadcast" else [self.sent, self.received]
        return max(max(direction.values(), default=0) for direction in directions)

    @property
    def two_way(self) -> bool:
        """Whether a rank sends and receives at the same time."""
        return self.sent.keys() & self.received.keys() != set()


def model_patterns(sizes: Sizes, mesh: Mesh, grid: Grid) -> list[Pattern]:
    """List what a mesh and a grid send, in the order of a chunk; omit patterns without messages."""
    gather_tokens = [rows * sizes.outputs * FP32 for rows in shares(sizes.tokens, mesh.world)]
    middle = 2 * LEVELS[0][1] * sizes.vae_dim * sizes.itemsize  # keys and values
    pixels = FRAMES * PIXELS**2 * COLORS
    parts = [rows * columns for rows, columns in _parts(sizes.latent, grid)]
    windows = sizes.windows * FP32
    found = [
        _pattern(
            "audio windows to all",
            "broadcast",
            [(0, rank, windows) for rank in range(1, mesh.world)],
        ),
        *_sequence_patterns(sizes, mesh),
        _pattern("gather, end of a step", "gather", _to_all(gather_tokens)),
        _pattern("gather, middle of the VAE", "gather", _to_all([n * middle for n in parts])),
        *_halo_patterns(sizes, grid),
        _pattern(
            "uint8 frames to rank 0",
            "collect",
            [(rank, 0, parts[rank] * pixels) for rank in range(1, grid.world)],
        ),
    ]
    return [pattern for pattern in found if pattern.messages]


def link_patterns(world: int, sizes: Iterable[int]) -> list[Pattern]:
    """List large messages between pairs of neighbours, all pairs at once: one-way, then two-way."""
    pairs = [(rank, rank + 1) for rank in range(0, world - 1, 2)]
    back = [(target, source) for source, target in pairs]
    return [
        _pattern(f"link {name}, {size >> 20} MiB", "link", [(*pair, size) for pair in chosen])
        for name, chosen in (("one way", pairs), ("both ways", pairs + back))
        for size in sizes
    ]


def _sequence_patterns(sizes: Sizes, mesh: Mesh) -> list[Pattern]:
    """List the messages of a layer's self-attention; tokens and heads are split among ranks."""
    tokens, heads = shares(sizes.tokens, mesh.world), shares(sizes.heads, mesh.ulysses)
    row = sizes.head_dim * sizes.itemsize  # bytes per token and head
    peers = [
        (source, target)
        for group in mesh.ulysses_groups()
        for source in group
        for target in group
        if source != target
    ]

    def heads_of(rank: int) -> int:
        return heads[rank % mesh.ulysses]

    def to_heads(count: Callable[[int], int]) -> list[tuple[int, int, int]]:
        return [
            (source, target, count(target) * tokens[source] * row)
            for source, target in peers
            for _ in range(3)  # queries, keys, values
        ]

    def back(count: Callable[[int], int]) -> list[tuple[int, int, int]]:
        return [(source, target, tokens[target] * count(source) * row) for source, target in peers]

    def one(_: int) -> int:
        return 1

    block = [sum(tokens[rank] for rank in group) for group in mesh.ulysses_groups()]
    around = [
        (source, target, block[source // mesh.ulysses] * heads_of(source) * row)
        for group in mesh.ring_groups()
        for source, target in zip(group, group[1:] + group[:1], strict=True)
        for _ in range(2)  # keys, values
        if source != target
    ]
    found = [
        _pattern("q, k, v to heads, all heads", "all_to_all", to_heads(heads_of)),
        _pattern("results back, all heads", "all_to_all", back(heads_of)),
        _pattern("keys and values round the ring", "ring", around),
    ]
    if max(heads) > 1:
        found.insert(0, _pattern("q, k, v to heads, one head each", "all_to_all", to_heads(one)))
        found.insert(2, _pattern("results back, one head each", "all_to_all", back(one)))
    return found


def _halo_patterns(sizes: Sizes, grid: Grid) -> list[Pattern]:
    """List the halos: a row or column at each border of a slice and corner pixels, per level.

    At the smallest and largest levels of a 2-D grid, also rows, columns and corners separately.
    """
    found = []
    flat = 1 in (grid.rows, grid.columns)
    for scale, width, frames in LEVELS:
        pixel = width * sizes.vae_dim * frames * sizes.itemsize
        height, length = (scale * part for part in sizes.latent)
        name = f"halo {height}x{length}x{width * sizes.vae_dim}"
        borders = list(_borders(sizes.latent, grid, scale))
        kinds: list[tuple[str, tuple[str, ...]]] = [("", ("rows", "columns", "corners"))]
        if not flat and scale in (LEVELS[0][0], PIXELS):
            kinds += [(f", {kind}", (kind,)) for kind in kinds[0][1]]
        for suffix, chosen in kinds:
            messages = [
                (source, target, length * pixel)
                for kind, source, target, length in borders
                if kind in chosen
            ]
            found.append(_pattern(name + suffix, "halo", messages))
    return found


def _borders(
    latent: tuple[int, int], grid: Grid, scale: int
) -> Iterator[tuple[str, int, int, int]]:
    """Yield neighbours on a level (rows, columns or corners): source, target, pixels per frame."""
    parts = _parts(latent, grid)
    for source in range(grid.world):
        row, column = grid.position(source)
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                target = grid.rank(row + down, column + right)
                if target is None or target == source:
                    continue
                height, width = parts[source]
                if down and right:
                    yield "corners", source, target, 1
                elif down:
                    yield "rows", source, target, width * scale
                else:
                    yield "columns", source, target, height * scale


def _parts(latent: tuple[int, int], grid: Grid) -> list[tuple[int, int]]:
    """Compute rows and columns of every rank's slice of a latent."""
    rows, columns = shares(latent[0], grid.rows), shares(latent[1], grid.columns)
    return [(height, width) for height in rows for width in columns]


def _to_all(bytes_of: list[int]) -> list[tuple[int, int, int]]:
    """List messages with every rank's own part to every other rank."""
    ranks = range(len(bytes_of))
    return [(a, b, bytes_of[a]) for a in ranks for b in ranks if a != b]


def _pattern(name: str, kind: str, messages: Iterable[tuple[int, int, int]]) -> Pattern:
    found = tuple(Message(*message) for message in messages if message[2])
    return Pattern(name=name, kind=kind, messages=found)


def _sum(parts: Iterable[tuple[int, int]]) -> Counter[int]:
    total: Counter[int] = Counter()
    for rank, count in parts:
        total[rank] += count
    return total
