"""The pages of ``docs/`` build without a warning and hold what the code says."""

import html
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import livetalk_kernels
import livetalk_model
from livetalk_kernels.registry import op_names
from livetalk_model.cli.main import COMMANDS
from livetalk_model.environment import OPTIONAL
from livetalk_model.stream.stats import STAGES

REPOSITORY = Path(__file__).resolve().parent.parent
INSTALL = "install the extra [docs], as 'make install-dev' does"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages; in CI, which installs mkdocs, a missing one fails."""
    found = all(map(importlib.util.find_spec, ("mkdocs", "mkdocstrings")))
    if not found and not os.environ.get("CI"):
        pytest.skip(f"no mkdocs here; {INSTALL}")
    assert found, f"no mkdocs here; {INSTALL}"
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text(page: Path) -> str:
    """What a reader sees of a page, without its marks."""
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def test_every_public_name_is_explained(site: Path) -> None:
    pages = "".join(file.read_text(encoding="utf-8") for file in (site / "api").glob("*.html"))
    shown = set(re.findall(r'<h\d id="(livetalk_[\w.]+)"', pages))
    public = {
        f"{package.__name__}.{name}"
        for package in (livetalk_kernels, livetalk_model)
        for name in package.__all__
    }
    public |= {f"livetalk_kernels.ops.{name}.{name}" for name in op_names()}
    assert public <= shown, public - shown


def test_every_command_and_stage_is_listed(site: Path) -> None:
    commands = text(site / "commands.html")
    for name, summary in COMMANDS.items():
        assert f"usage: livetalk {name} " in commands and summary in commands
    stages = text(site / "stages.html")
    rows = [stages.find(f"\n{name}\n{meaning}\n") for name, meaning in STAGES.items()]
    assert rows == sorted(rows) and rows[0] > 0


def test_every_optional_package_has_its_licence() -> None:
    page = (REPOSITORY / "docs/licences.md").read_text(encoding="utf-8")
    rows = [row.strip("|").split("|") for row in page.splitlines() if row.startswith("| ")][1:]
    listed = {
        (extra.strip().strip("`[]"), name.strip())
        for extra, names, licence, _ in rows
        for name in names.split(",")
        if licence.strip()
    }
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {
        (extra, re.split(r"[<>=\[]", line)[0])
        for extra, lines in project["optional-dependencies"].items()
        for line in lines
    }
    assert extras <= listed, extras - listed
    required = {re.split(r"[<>=\[]", line)[0] for line in project["dependencies"]}
    names = {name for _, name in listed}
    assert {row[0] for row in OPTIONAL} - required <= names


def test_generated_parts_have_no_second_home() -> None:
    """Nobody may copy what `docs/generate.py` fills in."""
    for name, mark in (("stages", "stages"), ("commands", "commands")):
        page = (REPOSITORY / f"docs/{name}.md").read_text(encoding="utf-8")
        assert f"<!-- generated: {mark} -->" in page
        assert not any(f"| {meaning} |" in page for meaning in STAGES.values())
        assert "usage:" not in page
