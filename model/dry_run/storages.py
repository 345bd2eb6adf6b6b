"""Finds the memory reachable from objects: every tensor's storage, once."""

from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
from types import FunctionType

from torch import Tensor, nn

_PACKAGE = __name__.partition(".")[0]


def storages(roots: Iterable[object]) -> dict[int, int]:
    """Find the memory of every tensor reachable from our own objects.

    Args:
        roots: Starting points.

    Returns:
        Identity of a storage -> its bytes; storages that stay on the host are omitted.
    """
    found: dict[int, int] = {}
    seen: set[int] = set()
    left = list(roots)
    while left:
        value = left.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        match value:
            case Tensor():
                if not value.is_pinned():
                    storage = value.untyped_storage()
                    found[storage._cdata] = storage.nbytes()
            case nn.Module():
                left += [*value.parameters(), *value.buffers()]
            case Mapping():
                left += value.values()
            case list() | tuple() | deque():
                left += value
            case partial():
                left += [value.func, *value.args, *value.keywords.values()]
            case FunctionType():
                left += [cell.cell_contents for cell in value.__closure__ or ()]
            case _ if type(value).__module__.startswith(_PACKAGE):
                left += vars(value).values()
    return found
