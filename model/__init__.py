"""The streaming avatar model, assembled on livetalk's kernels.

``from livetalk_model import load_pipeline`` is the way in; the README shows ten lines of it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .avatar import Avatar
    from .chunk import StreamOptions
    from .pipeline import Pipeline, load_pipeline
    from .stream import Session

__all__ = ["Avatar", "Pipeline", "Session", "StreamOptions", "load_pipeline"]

_HOMES = {
    "Avatar": "avatar",
    "Pipeline": "pipeline",
    "Session": "stream",
    "StreamOptions": "chunk",
    "load_pipeline": "pipeline",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``livetalk --help`` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
