"""The wheel and the source archive: what is in them, and a video made with nothing else."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import av
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PARTS = ("livetalk_kernels", "model", "csrc", "setup.py", "pyproject.toml", "MANIFEST.in",
         "LICENSE", "README.md")  # fmt: skip
BUNDLED = {
    f"livetalk_model/samples/{name}"
    for name in ("ada.png", "ben.png", "carl.png", "dora.png", "speech.wav")
}


def run(folder: Path, *command: object, env: Mapping[str, str]) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder, env=dict(env), capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment that knows neither the repository nor a compiler, which would take minutes."""
    tools = tmp_path_factory.mktemp("bin")
    left_out = {"PYTHONPATH", "CXX", "CC", "VIRTUAL_ENV"}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return kept | {"PATH": str(tools), "PYTHONNOUSERSITE": "1", "PIP_NO_INDEX": "1"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, clean: dict[str, str]) -> Path:
    """Built from a copy of the sources."""
    sources = tmp_path_factory.mktemp("sources")
    ignored = shutil.ignore_patterns("*.so", "*.reason", "__pycache__")
    for name in PARTS:
        if (REPOSITORY / name).is_dir():
            shutil.copytree(REPOSITORY / name, sources / name, ignore=ignored)
        else:
            shutil.copy(REPOSITORY / name, sources / name)
    pip = sys.executable, "-m", "pip"
    run(sources, *pip, "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", "dist", ".",
        env=clean)  # fmt: skip
    run(sources, sys.executable, "setup.py", "-q", "sdist", env=clean)
    (path,) = (sources / "dist").glob("*.whl")
    return path


def test_both_carry_what_is_bundled(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    demo = {
        f"livetalk_model/{path.relative_to(REPOSITORY / 'model').as_posix()}"
        for path in (REPOSITORY / "model/demo").rglob("*")
        if path.is_file()
    }
    assert names >= BUNDLED | demo
    (source,) = wheel.parent.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name.replace("livetalk_model/", "model/", 1) for name in BUNDLED | demo}
    assert inside >= wanted | {"setup.py", "csrc/cpu"}


def test_an_installed_wheel_makes_a_video(
    wheel: Path, clean: dict[str, str], tmp_path: Path
) -> None:
    """In an environment of its own, which borrows the dependencies of this one."""
    place = tmp_path / "env"
    run(tmp_path, sys.executable, "-m", "venv", "--without-pip", place, env=clean)
    python = place / "bin/python"
    (site,) = place.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = "install", "--no-deps", "--quiet", "--no-compile", wheel
    run(tmp_path, sys.executable, "-m", "pip", "--python", python, *install, env=clean)
    livetalk, video = place / "bin/livetalk", tmp_path / "talk.mp4"
    fast = "--preset", "tiny", "--device", "cpu", "--steps", "1", "--size", "32x32"
    said = run(tmp_path, livetalk, "generate", *fast, "--output", video, env=clean)
    where = run(tmp_path, python, "-c", "import livetalk_model as m; print(m.__file__)", env=clean)
    assert where.startswith(str(site)) and "talk.mp4: 17" in said
    with av.open(str(video)) as container:
        assert container.streams.audio and container.streams.video[0].frames > 160
