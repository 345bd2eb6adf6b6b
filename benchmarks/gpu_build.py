"""Compile the extensions in place, for ``make gpu-report``; a missing compiler is a note.

    python benchmarks/gpu_build.py --json build.json

The CUDA kernels come first: they are what a machine with a GPU is for. What ``python setup.py
build_cuda`` and ``build_cpu`` do, without setuptools reading the project first: an older one than
the project asks for compiles as well. Objects are kept, so a build that was cut off goes on where
it was.
"""

import argparse
import ast
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from livetalk_kernels.outputs import write_json

ROOT = Path(__file__).resolve().parent.parent
BUILT, NOTE, FAILED = "built", "note", "failed"


def build_functions() -> dict[str, Any]:
    """What ``setup.py`` defines, without its last call."""
    source = ROOT / "setup.py"
    tree = ast.parse(source.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not isinstance(node, ast.Expr) or _is_text(node)]
    names: dict[str, Any] = {"__name__": "setup_functions", "__file__": str(source)}
    exec(compile(tree, str(source), "exec"), names)
    return names


def _is_text(node: ast.Expr) -> bool:
    return isinstance(node.value, ast.Constant)


def attempt(
    build: Callable[[], None], missing: str | None, error: type[Exception]
) -> dict[str, Any]:
    """State, note and seconds of one build."""
    begin = time.monotonic()
    if missing is not None:
        return {"state": NOTE, "note": missing, "seconds": 0.0}
    try:
        build()
    except error as problem:
        return {"state": FAILED, "note": str(problem), "seconds": time.monotonic() - begin}
    return {"state": BUILT, "note": "", "seconds": time.monotonic() - begin}


def main() -> int:
    """Build, print, write.

    Returns:
        1 if a compiler failed.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("cpu", "cuda"), help="default: both")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    result: dict[str, Any] = {"schema": "livetalk/build/1", "complete": False}

    def note(name: str, entry: dict[str, Any]) -> None:
        result[name] = entry
        print(f"{name}: {entry['state']} {entry['note']} ({entry['seconds']:.0f} s)", flush=True)
        if args.json:
            write_json(args.json, result)

    package = ROOT / "livetalk_kernels"
    try:
        names = build_functions()
    except ImportError as error:
        reason = f"{error}: install setuptools to compile"
        for name in ("cuda", "cpu"):
            note(name, attempt(lambda: None, reason, ImportError))
        return 0
    failed = names["BuildError"]
    if args.only != "cpu":
        missing = None if names["find_nvcc"]() else "there is no nvcc: the cuda backends stay out"
        target, work = package / "_C_cuda.so", ROOT / "build/cuda"
        note("cuda", attempt(lambda: names["build_cuda"](target, work), missing, failed))
    if args.only != "cuda":
        compiler = names["shutil"].which("g++") or names["shutil"].which("clang++")
        missing = None if compiler or names["os"].environ.get("CXX") else "there is no C++ compiler"
        note("cpu", attempt(lambda: names["build_into"](package), missing, failed))
    result["complete"] = True
    states = [entry["state"] for entry in result.values() if isinstance(entry, dict)]
    if args.json:
        write_json(args.json, result)
    return 1 if FAILED in states else 0


if __name__ == "__main__":
    sys.exit(main())
