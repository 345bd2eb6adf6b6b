"""Fixtures shared by all tests: golden data of the published model, where it is present."""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = Path(__file__).resolve().parent / "data"
CHECKPOINTS = {"tiny_a", "tiny_a_sharded", "tiny_a128", "tiny_b", "w2v_768", "vae_96"}


def golden_tensors(spec: dict) -> dict[str, torch.Tensor]:
    """Rebuild a golden checkpoint from its recipe: offset + scale * (int8 noise + 1/2) / 128."""
    tensors = {}
    for key, (shape, offset, scale) in spec["tensors"].items():
        noise = np.random.RandomState(zlib.crc32(f"{spec['set']}:{key}".encode()))
        ints = noise.randint(-128, 128, size=int(np.prod(shape)), dtype=np.int32)
        unit = (ints.astype(np.float32) + np.float32(0.5)) / np.float32(128)
        values = np.float32(offset) + np.float32(scale) * unit
        tensors[key] = torch.from_numpy(values.reshape(shape))
    return tensors


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder with the golden tensors of the published model, or skip."""
    folder = Path(os.environ.get("LIVETALK_REFERENCE", REPOSITORY.parent / "shared/reference"))
    if not (folder / "facts.json").is_file():
        pytest.skip("golden tensors of the published model are not on this machine")
    return folder


@pytest.fixture(scope="session")
def golden(reference_dir: Path) -> Callable[[str], dict[str, torch.Tensor]]:
    """Loader: name of a golden file without its ending -> its tensors."""
    return lambda name: load_file(reference_dir / "io" / f"{name}.safetensors")


@pytest.fixture(scope="session")
def golden_checkpoint(
    reference_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Builder: name of a golden checkpoint -> its folder (``vae_96``: its file), made once."""
    root = tmp_path_factory.mktemp("golden")
    made: dict[str, Path] = {}

    def build(name: str) -> Path:
        if name in made:
            return made[name]
        spec_dir = reference_dir / "spec"

        def tensors(spec: str) -> dict[str, torch.Tensor]:
            return golden_tensors(json.loads((spec_dir / f"{spec}.json").read_text()))

        if name not in CHECKPOINTS:
            raise KeyError(f"{name}: one of {sorted(CHECKPOINTS)}")
        if name == "vae_96":
            made[name] = root / "Wan2.1_VAE_dim96.pth"
            torch.save(tensors("vae_96"), made[name])
            return made[name]
        folder = made[name] = root / name
        folder.mkdir()
        for config in ("config", "preprocessor_config"):
            source = spec_dir / f"{name}.{config}.json"
            if source.is_file():
                (folder / f"{config}.json").write_bytes(source.read_bytes())
        if name == "w2v_768":
            save_file(tensors(name), folder / "model.safetensors", metadata={"format": "pt"})
            return folder
        weights = tensors(name.removesuffix("_sharded"))
        index = spec_dir / f"{name}.index.json"
        single = "diffusion_pytorch_model.safetensors"
        shards = dict.fromkeys(weights, single)
        if index.is_file():
            (folder / f"{single}.index.json").write_bytes(index.read_bytes())
            shards = json.loads(index.read_text())["weight_map"]
        for shard in sorted(set(shards.values())):
            part = {key: weights[key] for key, file in shards.items() if file == shard}
            save_file(part, folder / shard, metadata={"format": "pt"})
        torch.save(tensors("vae_16"), folder / "Wan2.1_VAE.pth")
        return folder

    return build
