"""The transformer in training: a batch of chunks, computed entirely in one `forward`.

In a stream, keys, values and modulations are prepared once; here every block computes its own, so
that gradients reach their weights and a sharded block is gathered once. Results are the same.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from ...config import DiTConfig
from ...dit import DiT
from ...layers import NormRope
from ...weights.checkpoint import CheckpointFolder
from ...weights.fill import load_module, open_weights, random_module
from ..loop.place import Place
from ..loop.shards import local_rows

MASK_CHANNELS = 4


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The conditions of each chunk in a batch.

    Attributes:
        portrait: [B, 16, T, h, w] latents of the reference picture and grey (`Avatar.condition`).
        text: [B, L, 4096] prompt embeddings, padded with zeros.
        image: [B, 257, 1280] image features.
        windows: [B, F, window, layers, channels] audio features around every video frame.
    """

    portrait: Tensor
    text: Tensor
    image: Tensor
    windows: Tensor

    def drop(self, *, text: Tensor, audio: Tensor) -> Self:
        """Drop text or audio: replace it by zeros, like a prompt's padding rows, and silence.

        Args:
            text: bool [B]: samples without text.
            audio: bool [B]: samples without audio.
        """
        return replace(
            self,
            text=self.text.masked_fill(text.view(-1, 1, 1), 0.0),
            windows=self.windows.masked_fill(audio.view(-1, 1, 1, 1, 1), 0.0),
        )


class Network(nn.Module):
    """The flow predicted by the transformer, at each sample's own timestep."""

    def __init__(self, dit: DiT, *, products: torch.dtype = torch.float32) -> None:
        """Wrap a transformer.

        Args:
            dit: Transformer whose ops were bound with ``differentiable=True``.
            products: bf16: matrix products use it, while weights keep their dtype.
        """
        super().__init__()
        assert dit.ops.differentiable, "bind_ops(differentiable=True) finds what has gradients"
        assert dit.reuse and not dit.fp8 and dit.parallel.mesh.world == 1
        self.dit, self.products = dit, products
        self._norm_rope: dict[tuple[int, int, int], NormRope] = {}

    def forward(self, x_BCTHW: Tensor, timestep_B: Tensor, given: Conditions) -> Tensor:
        """Predict the flow.

        Args:
            x_BCTHW: [B, 16, T, h, w] noisy latents.
            timestep_B: [B] shifted timesteps, 0 (clean) to 1000 (noise).
            given: The conditions.

        Returns:
            float32 [B, 16, T, h, w].
        """
        if self.products != torch.float32:
            with torch.autocast(x_BCTHW.device.type, self.products):
                return self._predict(x_BCTHW, timestep_B, given).float()
        return self._predict(x_BCTHW, timestep_B, given)

    def _predict(self, x_BCTHW: Tensor, timestep_B: Tensor, given: Conditions) -> Tensor:
        dit, grid = self.dit, self.dit.token_grid(x_BCTHW)
        if grid not in self._norm_rope:
            self._norm_rope[grid] = dit.prepare_rope(grid)
        mask_BCTHW = torch.zeros_like(given.portrait[:, :MASK_CHANNELS])
        mask_BCTHW[:, :, 0] = 1
        flow_BCTHW: Tensor = dit(
            x_BCTHW,
            condition=dit.prepare_condition(torch.cat((mask_BCTHW, given.portrait), dim=1)),
            step=dit.embed_steps(timestep_B),
            context=dit.embed_context(given.text, given.image),
            audio=dit.embed_audio(given.windows),
            norm_rope=self._norm_rope[grid],
        )
        return flow_BCTHW.clone()  # FSDP's hooks do not stay on views


def load_network(
    folder: CheckpointFolder, config: DiTConfig, place: Place, dtype: torch.dtype = torch.float32
) -> Network:
    """Load a frozen network; each rank reads its own share of the weights.

    Args:
        folder: A run or a published checkpoint.
        config: Its shape.
        place: The device and the ranks.
        dtype: Dtype of the weights.

    Raises:
        UserError: Weights are missing, damaged or of another shape.
    """
    network = _shared_out(config, place)
    with open_weights(folder.dit) as files:
        load_module(
            network.dit, files, dtype=dtype, device=place.device, key_map=network.dit.key_map(),
            share=local_rows,
        )  # fmt: skip
    return network


def random_network(seed: int, config: DiTConfig, place: Place) -> Network:
    """Make a frozen network of random weights, the same for any number of ranks."""
    network = _shared_out(config, place)
    random_module(
        network.dit, seed=seed, dtype=torch.float32, device=place.device,
        key_map=network.dit.key_map(), share=local_rows,
    )  # fmt: skip
    return network


def _shared_out(config: DiTConfig, place: Place) -> Network:
    """Build a network without weights, its parameters already divided among the ranks."""
    with torch.device("meta"):
        network = Network(
            DiT(config, place.ops, checkpointed=place.recompute), products=place.products
        )
    place.share_out(network, network.dit.blocks, network.products)
    return network
