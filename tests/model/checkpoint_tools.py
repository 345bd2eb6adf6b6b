"""A small checkpoint, and how tests of checkpoints load and refuse one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from livetalk_kernels.errors import UserError
from livetalk_model.weights.fill import load_module
from livetalk_model.weights.tensor_files import open_weights

DIT = "diffusion_pytorch_model.safetensors"
INDEX = f"{DIT}.index.json"
VAE = "Wan2.1_VAE.pth"
FP8 = torch.float8_e4m3fn
TENSORS = {f"blocks.{number}.weight": torch.full((4, 4), number / 8) for number in range(6)}


class Blocks(nn.Module):
    """What ``TENSORS`` are the weights of."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4, bias=False) for _ in range(6))


def load(path: Path) -> dict[str, torch.Tensor]:
    """Weights as a module has them after loading."""
    with torch.device("meta"):
        module = Blocks()
    with open_weights(path) as files:
        load_module(module, files, dtype=torch.float32, device="cpu")
    return module.state_dict()


def refused(call: Callable[[], object]) -> str:
    """The one line with which something is refused."""
    with pytest.raises(UserError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message and len(message) < 800, message
    return message


def write_header(path: Path, header: object, data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
