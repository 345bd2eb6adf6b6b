import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def drop_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, str], None]]:
    """Put a file into the package of the ops: ``drop_in("add_norm/toy.py", source)``."""
    before = set(sys.modules)

    def add(path: str, source: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(source)
        existing = "livetalk_kernels.ops." + file.parent.name
        folder = file.parent
        if file.name == "__init__.py":
            existing, folder = "livetalk_kernels.ops", tmp_path
        package = importlib.import_module(existing)
        if str(folder) not in package.__path__:
            monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        importlib.invalidate_caches()

    yield add
    for name in sorted(set(sys.modules) - before, reverse=True):  # backends before their op
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            parent, _, child = name.rpartition(".")
            delattr(sys.modules[parent], child)
            del sys.modules[name]


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``setup.py`` as a module."""
    spec = importlib.util.spec_from_file_location("livetalk_setup", ROOT / "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr("setuptools.setup", lambda **keywords: None)
    spec.loader.exec_module(module)
    return module
