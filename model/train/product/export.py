"""Exports training results in the published layout, for ``livetalk generate --checkpoint``."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from livetalk_kernels.outputs import new_file, write_json

from ...config import FIXED_SWITCHES
from ...own import OwnModel
from ...vae import VAE
from ...weights.checkpoint import DIT_CONFIG, VAE_FILE
from ...weights.safetensors_file import TensorSpec, write_safetensors
from ..chunks.network import Network

DIT_FILE = "diffusion_pytorch_model.safetensors"
_PREFIX = "dit."  # in a `Network`'s names


def export_network(
    network: Network,
    folder: Path,
    *,
    own: OwnModel | None = None,
    weights: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    leads: bool = True,
) -> None:
    """Write ``config.json`` and the transformer's weights under their published names.

    Args:
        network: The network; if its parameters are sharded, all ranks must call this.
        folder: Target folder; files with these names are replaced.
        own: What the model declares about its use; None writes ``config.json`` like published ones.
        weights: Name -> tensor that replaces the network's own, `Average.weights`.
        dtype: Dtype of the file; by default the parameters'.
        leads: Whether this rank writes.

    Raises:
        UserError: The folder is not writable.
    """
    dit = network.dit
    held = {
        name.removeprefix(_PREFIX): value
        for name, value in (dict(network.named_parameters()) | dict(weights or {})).items()
    }
    entries = []
    for key, slot in dit.key_map().items():
        value, rows = held[slot.param], slot.rows or slice(None)
        count = len(range(value.shape[0])[rows])
        spec: TensorSpec = ((count, *value.shape[1:]), dtype or value.dtype)

        def give(value: Tensor = value, rows: slice = rows, spec: TensorSpec = spec) -> Tensor:
            return _whole(value)[rows].to(spec[1])

        entries.append((key, spec, give))
    if not leads:
        for _, _, give in entries:  # the others gather with the one that writes
            give()
        return
    with new_file(folder / DIT_FILE) as file:
        write_safetensors(file, entries, {"format": "pt"})
    said = {} if own is None else own.entry()
    write_json(folder / DIT_CONFIG, {**FIXED_SWITCHES, **dataclasses.asdict(dit.config), **said})


def export_vae(vae: VAE, folder: Path) -> None:
    """Write the VAE's weights under their published names.

    Raises:
        UserError: The folder is not writable.
    """
    with new_file(folder / VAE_FILE) as file:
        torch.save({name: value.detach().cpu() for name, value in vae.state_dict().items()}, file)


def _whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value
