"""Fixtures shared by all tests: golden data of the published model.

A small part of it is in ``tests/data`` and is always there. The whole set is looked for in
``../shared/reference``, or where LIVETALK_REFERENCE points; tests that need it carry the mark
``golden``.
"""

import json
import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from livetalk_kernels import heap
from livetalk_kernels.backends import cpu
from livetalk_kernels.bench import roofline, timer

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().parent / "data"
SPECS = DATA / "spec"
WHOLE_SET = {"golden", "reference_dir"}  # fixtures that read the whole set

Tensors = dict[str, torch.Tensor]

# Scripts import each other. Last, since one of them is named like the standard library's `chunk`.
sys.path.append(str(REPOSITORY / "benchmarks"))

if not torch.cuda.is_available():  # Triton reads it when a kernel is defined
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs the whole set."""
    for item in items:
        if WHOLE_SET.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("golden")


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Signals work here and in child processes, also where the suite runs in the background."""
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGHUP, hang_up)


@pytest.fixture(params=cpu.ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this CPU has, in turn the one in use.

    A test may parametrise it indirectly: with "NAME in tiles", tiles are also used in plain C++.
    """
    assert cpu.missing() is None
    name, *tiles = request.param.split(" in ")
    try:
        torch.ops.livetalk.use_isa(name, tiles=bool(tiles))
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    yield request.param
    torch.ops.livetalk.use_isa("best")


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes and caches so small that nothing takes long; the test process keeps its heap."""
    monkeypatch.setitem(roofline.GEMM_SIZE, "cpu", 64)
    for module in (roofline, timer):
        monkeypatch.setattr(module, "last_level_cache", lambda: 1 << 16)
    monkeypatch.setattr(heap, "keep_freed_memory", lambda **_: False)


@pytest.fixture(scope="session")
def small_golden() -> Callable[[str], Tensors]:
    """Loader: name of a file in ``tests/data`` without its ending -> its tensors."""
    return lambda name: load_file(DATA / f"{name}.safetensors")


@pytest.fixture(scope="session")
def facts() -> dict:
    """Names, shapes, counts and timesteps of the published models."""
    return json.loads((DATA / "facts.json").read_text())


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder with the whole set; skips where it is absent, fails where it was named wrongly."""
    named = os.environ.get("LIVETALK_REFERENCE")
    folder = Path(named or REPOSITORY.parent / "shared/reference")
    if not (folder / "facts.json").is_file():
        if named:
            pytest.fail(f"LIVETALK_REFERENCE: no facts.json in {folder}", pytrace=False)
        pytest.skip("the whole set of golden tensors is not on this machine")
    return folder


@pytest.fixture(scope="session")
def golden(reference_dir: Path) -> Callable[[str], Tensors]:
    """Loader: name of a file of the whole set without its ending -> its tensors."""
    return lambda name: load_file(reference_dir / "io" / f"{name}.safetensors")


def golden_tensors(spec: str) -> Tensors:
    """Rebuild golden weights from their recipe: offset + scale * (int8 noise + 1/2) / 128."""
    recipe = json.loads((SPECS / f"{spec}.json").read_text())
    tensors = {}
    for key, (shape, offset, scale) in recipe["tensors"].items():
        noise = np.random.RandomState(zlib.crc32(f"{recipe['set']}:{key}".encode()))
        ints = noise.randint(-128, 128, size=int(np.prod(shape)), dtype=np.int32)
        unit = (ints.astype(np.float32) + np.float32(0.5)) / np.float32(128)
        values = np.float32(offset) + np.float32(scale) * unit
        tensors[key] = torch.from_numpy(values.reshape(shape))
    return tensors


def write_audio_encoder(name: str, folder: Path) -> None:
    """A wav2vec2 folder."""
    for config in ("config", "preprocessor_config"):
        (folder / f"{config}.json").write_bytes((SPECS / f"{name}.{config}.json").read_bytes())
    save_file(golden_tensors(name), folder / "model.safetensors", metadata={"format": "pt"})


def write_model(name: str, folder: Path) -> None:
    """A checkpoint folder with DiT (sharded if it has an index) and VAE (dim 16)."""
    (folder / "config.json").write_bytes((SPECS / f"{name}.config.json").read_bytes())
    weights = golden_tensors(name.removesuffix("_sharded"))
    single, index = "diffusion_pytorch_model.safetensors", SPECS / f"{name}.index.json"
    shards = dict.fromkeys(weights, single)
    if index.is_file():
        (folder / f"{single}.index.json").write_bytes(index.read_bytes())
        shards = json.loads(index.read_text())["weight_map"]
    for shard in sorted(set(shards.values())):
        part = {key: weights[key] for key, file in shards.items() if file == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    torch.save(golden_tensors("vae_16"), folder / "Wan2.1_VAE.pth")


@pytest.fixture(scope="session")
def golden_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builder: name -> path of rebuilt weights, written once and not to be changed.

    ``tiny_a``, ``tiny_a_sharded``, ``tiny_a128``, ``tiny_b``: folders with DiT and VAE;
    ``w2v_768``, ``w2v_small``: folders of an audio encoder; ``vae_96``, ``clip_tiny``,
    ``t5_tiny``: .pth files.
    """
    root = tmp_path_factory.mktemp("golden")

    @cache
    def build(name: str) -> Path:
        if name in ("vae_96", "clip_tiny", "t5_tiny"):
            file = root / f"{name}.pth"
            torch.save(golden_tensors(name), file)
            return file
        folder = root / name
        folder.mkdir()
        write = write_audio_encoder if name.startswith("w2v_") else write_model
        write(name, folder)
        return folder

    return build
