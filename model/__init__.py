"""The streaming avatar model, assembled on livetalk's kernels.

``from livetalk_model import load_pipeline`` is the entry point; the README shows ten lines of it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .avatar import Avatar
    from .loading import load_pipeline, load_preparer
    from .pipeline import Pipeline
    from .preparation import Preparer
    from .stream.chunk import StreamOptions
    from .stream.session import Session

__all__ = [
    "Avatar",
    "Pipeline",
    "Preparer",
    "Session",
    "StreamOptions",
    "load_pipeline",
    "load_preparer",
]

_HOMES = {
    "Avatar": "avatar",
    "Pipeline": "pipeline",
    "Preparer": "preparation",
    "Session": "stream.session",
    "StreamOptions": "stream.chunk",
    "load_pipeline": "loading",
    "load_preparer": "loading",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``livetalk --help`` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
