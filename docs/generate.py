"""Generates parts of pages from the code while mkdocs builds them.

A page has ``<!-- generated: NAME -->`` where a part of it is generated: the commands from their
parsers, the stages from the stream, the API from the packages' public names.
"""

import argparse
import contextlib
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import livetalk_kernels
import livetalk_model
from livetalk_kernels.registry import load_op, op_names
from livetalk_model.cli.main import COMMANDS, make_parser
from livetalk_model.stream.stats import BESIDE, STAGES

REPOSITORY = Path(__file__).resolve().parent.parent
MARK = re.compile(r"<!-- generated: ([a-z ]+) -->")
COLUMNS = 96
RUNTIME = REPOSITORY / "livetalk_kernels/runtime/README.md"
PACKAGES = {"livetalk_kernels": "livetalk_kernels", "livetalk_model": "model"}
LINKS = REPOSITORY / "out/docs-packages"


def commands() -> str:
    """Format the help of every command, as shown in a terminal."""
    pages = []
    for name, summary in COMMANDS.items():
        (choices,) = (
            action.choices
            for action in make_parser([name])._actions
            if isinstance(action, argparse._SubParsersAction)
        )
        parser = choices[name]
        parser.formatter_class = functools.partial(parser.formatter_class, width=COLUMNS)
        pages.append(f"## {name}\n\n{summary}\n\n```text\n{parser.format_help()}```\n")
    return "\n".join(pages)


def stages() -> str:
    """Format the table of stages in execution order."""
    rows = [f"| {name} | {meaning} |" for name, meaning in STAGES.items()]
    note = f"A stage that runs concurrently with the others ends in `{BESIDE.strip()}`."
    return "\n".join(["| stage | what it does |", "|---|---|", *rows, "", note])


def ops() -> str:
    """List every op's public function."""
    specs = [load_op(name) for name in op_names()]
    return "\n\n".join(f"::: {spec.function.__module__}.{spec.name}" for spec in specs)


def public_names(package: str, names: list[str]) -> str:
    """List everything that a package exports."""
    return "\n\n".join(f"::: {package}.{name}" for name in names)


GENERATED: Mapping[str, Callable[[], str]] = MappingProxyType(
    {
        "commands": commands,
        "stages": stages,
        "ops": ops,
        "kernels": lambda: public_names("livetalk_kernels", livetalk_kernels.__all__),
        "model": lambda: public_names("livetalk_model", livetalk_model.__all__),
    }
)


def on_startup(command: str, dirty: bool) -> None:
    """Link the packages under their installed names, where mkdocs.yml expects them.

    mkdocstrings reads sources without importing them, and an editable installation only gives it
    the name of the folder, which differs for ``model``.
    """
    LINKS.mkdir(parents=True, exist_ok=True)
    for name, folder in PACKAGES.items():
        with contextlib.suppress(FileExistsError):
            (LINKS / name).symlink_to(Path("../..", folder))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the runtime's page, which is stored next to the code."""
    files.append(File.generated(config, "runtime.md", abs_src_path=str(RUNTIME)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace every mark by the part it names."""
    return MARK.sub(lambda mark: GENERATED[mark[1]](), markdown)
