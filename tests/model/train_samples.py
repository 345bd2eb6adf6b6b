"""A transformer and a VAE small enough to be trained in a test, and conditions for them."""

import torch
from torch import Tensor

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_kernels.ops import Ops
from livetalk_model.config import CHUNK_FRAMES, DiTConfig, VAEConfig
from livetalk_model.dit import DiT
from livetalk_model.train.chunks.network import Conditions, Network
from livetalk_model.train.loop.update import take_step
from livetalk_model.vae import VAE
from livetalk_model.weights.fill import random_module

SIZE = (9, 4, 4)  # latent frames, rows, columns
CONFIG = DiTConfig(dim=48, ffn_dim=40, num_heads=3, num_layers=2, intermediate_dim=8, output_dim=16,
                   audio_layers=2, audio_dim=8, text_dim=24, image_dim=16, image_len=3,
                   context_tokens=2, text_len=9)  # fmt: skip


def training_ops(choice: str = "auto") -> Ops:
    """Ops with gradients."""
    config = KernelConfig.parse([choice])
    return bind_ops(config, device="cpu", dtype=torch.float32, differentiable=True)


def small_network(ops: Ops | None = None, *, seed: int = 5) -> Network:
    """A network with random weights that learn."""
    with torch.device("meta"):
        dit = DiT(CONFIG, ops or training_ops())
    random_module(dit, seed=seed, dtype=torch.float32, device="cpu", key_map=dit.key_map())
    return Network(dit).requires_grad_()


def small_vae(ops: Ops | None = None, *, reuse: bool = True, fuse_bias: bool = False) -> VAE:
    """A VAE with random weights, frozen."""
    config = VAEConfig(dim=8)
    with torch.device("meta"):
        vae = VAE(config, ops or training_ops(), reuse=reuse, fuse_bias=fuse_bias)
    random_module(vae, seed=6, dtype=torch.float32, device="cpu")
    vae.prepare()
    return vae


def random_conditions(batch: int, *, seed: int = 3, size: tuple[int, ...] = SIZE) -> Conditions:
    """Conditions of standard normal numbers."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=random)

    return Conditions(
        portrait=draw(16, *size),
        text=draw(7, CONFIG.text_dim),
        image=draw(CONFIG.image_len, CONFIG.image_dim),
        windows=draw(CHUNK_FRAMES, CONFIG.audio_window, CONFIG.audio_layers, CONFIG.audio_dim),
    )


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    """One step down a loss, as the loop takes it; the gradient's norm."""
    optimizer.zero_grad()
    loss.backward()
    return take_step(optimizer)


def sample(given: Conditions, index: int) -> Conditions:
    """One sample of a batch."""
    return Conditions(**{name: value[index : index + 1] for name, value in vars(given).items()})
