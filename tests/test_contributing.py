"""CONTRIBUTING's recipes work when followed to the letter, and its trips name what exists."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
COPIED = [
    "livetalk_kernels", "model", "pyproject.toml", "tests/conftest.py", "tests/kernels", "tests/cli"
]  # fmt: skip
TABLE = "COMMANDS: Mapping[str, str] = MappingProxyType(\n    {\n"


def section(title: str) -> str:
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## )", TEXT, re.MULTILINE | re.DOTALL)
    return found


def files_of(recipe: str) -> dict[str, str]:
    """Map paths to the contents of the files that a recipe says to write."""
    return dict(re.findall(r"`([\w/]+\.py)`:\n\n```python\n(.*?)```", section(recipe), re.DOTALL))


def proof_of(recipe: str) -> list[str]:
    """Return the command that ends a recipe."""
    lines = re.findall(r"This proves it:\n\n```bash\n(.*)\n```\n", section(recipe))
    program, *words = shlex.split(lines[-1])
    assert len(lines) == 1 and program == ".venv/bin/python"
    return [sys.executable, *words, "-p", "no:cacheprovider", "-q"]


def follow(recipe: str, folder: Path, files: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    """Copy the packages to a folder, write a recipe's files there and run its proof."""
    for name in COPIED:
        source, target = REPOSITORY / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    (folder / "livetalk_model").symlink_to("model")
    for name, code in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        assert not (folder / name).exists(), f"{name} is there already"
        (folder / name).write_text(code, encoding="utf-8")
    entry = re.search(r"`COMMANDS` of `(.*?)`.*?```python\n(.*?)```", section(recipe), re.DOTALL)
    if entry:
        table = (folder / entry[1]).read_text(encoding="utf-8")
        assert TABLE in table
        (folder / entry[1]).write_text(table.replace(TABLE, TABLE + entry[2]), encoding="utf-8")
    return subprocess.run(
        proof_of(recipe), cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "count", "proven"), [("A backend", 1, 8), ("An op", 2, 8), ("A command", 1, 3)]
)
def test_a_recipe_proves_itself(recipe: str, count: int, proven: int, tmp_path: Path) -> None:
    files = files_of(recipe)
    assert len(files) == count
    done = follow(recipe, tmp_path, files)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed, done.stdout + done.stderr
    assert int(passed[1]) >= proven, done.stdout


def test_the_proof_of_a_backend_fails_where_it_is_wrong(tmp_path: Path) -> None:
    ((name, code),) = files_of("A backend").items()
    done = follow("A backend", tmp_path, {name: code.replace("x + gate * y", "x + y")})
    assert done.returncode == 1 and "-plain" in done.stdout, done.stdout + done.stderr


@cache
def names_in(file: Path) -> set[str]:
    """List functions and classes of a source file; methods as ``Class.method``."""
    code = file.read_text(encoding="utf-8")
    if file.suffix != ".py":
        return set(re.findall(r"^[\w:<>][\w:<>, &*]* (\w+)\(", code, re.MULTILINE))
    found = set()
    for node in ast.parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            parts = node.body if isinstance(node, ast.ClassDef) else []
            found |= {f"{node.name}.{x.name}" for x in parts if isinstance(x, ast.FunctionDef)}
    return found


def test_trips_name_functions_that_exist() -> None:
    trips = re.findall(r"^### (.*?)\n\n(.*?)(?=^### |\Z)", section("Three trips"), re.M | re.S)
    assert [len(re.findall(r"^\d+\. ", text, re.M)) for _, text in trips] == [10, 10, 10]
    wrong = []
    for title, text in trips:
        named = re.findall(r"`([\w/.]+)::([\w.]+)`", text)
        assert len(named) >= 10, title
        wrong += [
            f"{title}: {file}::{name}"
            for file, name in named
            if not (REPOSITORY / file).is_file() or name not in names_in(REPOSITORY / file)
        ]
    assert not wrong, "\n".join(wrong)


def test_a_name_that_is_not_there_is_seen() -> None:
    kernel = names_in(REPOSITORY / "csrc/cpu/add_norm.cpp")
    assert "add_norm" in kernel and "add_norm_rows" not in kernel
    session = names_in(REPOSITORY / "model/stream/session.py")
    assert "Session.push" in session and "Session.pull" not in session and "push" not in session


def test_every_folder_is_on_the_map() -> None:
    shown = section("The map")
    packages = [*(REPOSITORY / "livetalk_kernels").iterdir(), *(REPOSITORY / "model").iterdir()]
    names = {path.name for path in packages if (path / "__init__.py").is_file()}
    assert not [name for name in sorted(names) if f"{name}/" not in shown]
