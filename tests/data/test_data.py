"""The small golden tensors are cut unchanged out of the whole set; the faults' tests exist."""

import ast
import re

import torch
from cut_golden import DATA, DOCUMENTS, small_tensors
from safetensors.torch import load_file

MEBIBYTE = 2**20


def test_sizes():
    sizes = {file.name: file.stat().st_size for file in DATA.rglob("*") if file.is_file()}
    assert sum(sizes.values()) <= 5e6
    assert not [name for name, size in sizes.items() if size > MEBIBYTE]


def test_tensors_are_those_of_the_whole_set(reference_dir):
    wanted = small_tensors(reference_dir)
    assert wanted.keys() == {file.stem for file in DATA.glob("*.safetensors")}
    for name, tensors in wanted.items():
        stored = load_file(DATA / f"{name}.safetensors")
        assert stored.keys() == tensors.keys()
        for key, tensor in tensors.items():
            assert stored[key].dtype == tensor.dtype, f"{name}: {key}"
            assert torch.equal(stored[key], tensor), f"{name}: {key}"


def test_documents_are_those_of_the_whole_set(reference_dir):
    assert DOCUMENTS.keys() == {file.relative_to(DATA).as_posix() for file in DATA.rglob("*.json")}
    for name, source in DOCUMENTS.items():
        assert (DATA / name).read_bytes() == (reference_dir / source).read_bytes(), name


def test_rebuilt_weights_are_the_published_files(reference_dir, golden_checkpoint):
    """The files that the published code loaded, where the whole set has them as files."""
    small = reference_dir / "ckpt_small"
    for name in ("t5_tiny", "clip_tiny"):
        wanted = torch.load(small / f"{name}.pth", weights_only=True)
        built = torch.load(golden_checkpoint(name), weights_only=True)
        assert built.keys() == wanted.keys()
        assert all(torch.equal(built[key], wanted[key]) for key in wanted), name
    wanted = load_file(small / "w2v_small/model.safetensors")
    built = load_file(golden_checkpoint("w2v_small") / "model.safetensors")
    assert built.keys() == wanted.keys()
    assert all(torch.equal(built[key], wanted[key]) for key in wanted)


def test_every_fault_has_a_test():
    _, table = (DATA / "README.md").read_text().split("| fault | test |")
    named = re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", table.partition("\n## ")[0])
    assert len(named) > 60
    for file, test in named:
        tree = ast.parse((DATA.parent / file).read_text())
        tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert test in tests or not test, f"{file}::{test}"
