"""A transformer that was given zeros for text and image loses what answers to them, and no more."""

import dataclasses
import json

import torch
from safetensors.torch import load_file, save_file
from train_samples import CONFIG, SIZE, random_conditions, training_ops

from livetalk_model.dit import DiT
from livetalk_model.own import OwnModel
from livetalk_model.train.chunks.network import Network
from livetalk_model.train.product.export import DIT_FILE, export_network
from livetalk_model.train.product.trimming import WIDTH, trim
from livetalk_model.weights.checkpoint import CheckpointFolder
from livetalk_model.weights.fill import load_module, open_weights, random_module

OWN = OwnModel(size=(32, 32), prompt_zeros=3, image_zeros=True)


def flow(folder) -> torch.Tensor:
    """What a folder's transformer makes of fixed latents and sound, and of zeros."""
    checkpoint = CheckpointFolder(folder)
    config, own = checkpoint.dit_config(), checkpoint.own
    with torch.device("meta"):
        dit = DiT(config, training_ops())
    with open_weights(checkpoint.dit) as files:
        load_module(dit, files, dtype=torch.float32, device="cpu", key_map=dit.key_map())
    given = dataclasses.replace(
        random_conditions(1),
        text=torch.zeros(1, own.prompt_zeros, config.text_dim),
        image=torch.zeros(1, config.image_len, config.image_dim),
    )
    x = torch.randn(1, 16, *SIZE, generator=torch.Generator().manual_seed(1))
    return Network(dit)(x, torch.tensor([700.0]), given).detach()


def test_the_flow_stays(tmp_path):
    with torch.device("meta"):
        dit = DiT(dataclasses.replace(CONFIG, image_dim=48), training_ops())
    random_module(dit, seed=5, dtype=torch.float32, device="cpu", key_map=dit.key_map())
    export_network(Network(dit), tmp_path / "whole", own=OWN)
    weights = load_file(tmp_path / "whole" / DIT_FILE)
    config = json.loads((tmp_path / "whole/config.json").read_text())
    kept, said = trim(weights, config, OWN)
    (tmp_path / "less").mkdir()
    save_file(kept, tmp_path / "less" / DIT_FILE)
    (tmp_path / "less/config.json").write_text(json.dumps(said))
    small = CheckpointFolder(tmp_path / "less").dit_config()
    assert (small.text_len, small.text_dim, small.image_len, small.image_dim) == (1, WIDTH) * 2
    whole, less = flow(tmp_path / "whole"), flow(tmp_path / "less")
    assert (whole - less).norm() < 1e-5 * whole.norm()
    again, same = trim(kept, said, CheckpointFolder(tmp_path / "less").own)
    assert same == said and all(torch.equal(value, kept[key]) for key, value in again.items())
