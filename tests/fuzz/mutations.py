"""Ways to spoil a file: bytes of any format, and values inside JSON."""

import json
import random
from typing import Any

INTERESTING_BYTES = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)
INTERESTING_INTS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x40000000)
INTERESTING_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**18,
    10**400,
    1e308,
    -0.0,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\x1b[2J\n",
    "x" * 70_000,
    "é\ud800",
    [],
    {},
    [[[]]],
    {"": {}},
)


def mutate(data: bytes, rng: random.Random, *, is_json: bool) -> bytes:
    """Corrupt a file's contents in one to four places."""
    if is_json and rng.random() < 0.6:
        return _mutate_json(data, rng)
    spoiled = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(_BYTE_MUTATIONS)(spoiled, rng)
    return bytes(spoiled)


def _place(data: bytearray, rng: random.Random) -> int:
    """Pick a position, often near the start, where headers are."""
    end = len(data) if rng.random() < 0.5 else min(len(data), 256)
    return rng.randrange(end) if end else 0


def _flip_bit(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _set_byte(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] = rng.choice(INTERESTING_BYTES)


def _set_int(data: bytearray, rng: random.Random) -> None:
    width = rng.choice((2, 4, 8))
    order = rng.choice(("little", "big"))
    at = _place(data, rng)
    value = rng.choice(INTERESTING_INTS) % (1 << 8 * width)
    data[at : at + width] = value.to_bytes(width, order)


def _cut_off(data: bytearray, rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 4, 64, 1024))]


def _repeat(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = data[at : at + rng.choice((1, 4, 64, 1024))] * rng.choice((1, 2, 16))


def _insert(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = rng.randbytes(rng.choice((1, 3, 16, 200)))


_BYTE_MUTATIONS = (_flip_bit, _set_byte, _set_int, _cut_off, _remove, _repeat, _insert)


def _mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Replace, remove or rename one value somewhere in the tree."""
    tree = json.loads(data)
    holders = list(_holders(tree))
    if holders:
        holder, key = rng.choice(holders)
        what = rng.random()
        if what < 0.7:
            holder[key] = rng.choice(INTERESTING_VALUES)
        elif what < 0.85:
            del holder[key]
        elif isinstance(holder, dict):
            holder[rng.choice(("", "x", "__class__", str(key).upper()))] = holder.pop(key)
        else:
            holder.append(holder[key])
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def _holders(tree: Any) -> Any:
    """List every place in a JSON value, as (container, key or index)."""
    items: Any = ()
    if isinstance(tree, dict):
        items = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree))
    for key, value in items:
        yield tree, key
        yield from _holders(value)
