"""Floating-point operations of the model, counted by formula; a multiply-add is two.

Norms, activations, softmax and rotations are left out: they are bound by memory, not arithmetic.
The VAE's convolutions are counted in `vae_cost.py`, since they depend on its schedule.
"""

from dataclasses import dataclass

from .config import DiTConfig


@dataclass(frozen=True, kw_only=True)
class DiTFlops:
    """FLOPs of the transformer, by how often the work is needed.

    Attributes:
        step: Of every step: all that depends on the latent.
        chunk: Of every chunk: audio projection and audio K/V.
        avatar: Of every avatar: text and image embedding and K/V, constant patch embedding.
        schedule: Of every schedule of one step: time embedding and modulation.
    """

    step: int
    chunk: int
    avatar: int
    schedule: int

    def total(self, steps: int, *, reuse: bool) -> int:
        """FLOPs of a chunk; without ``reuse`` everything is done again in every step."""
        if reuse:
            return steps * self.step + self.chunk
        return steps * (self.step + self.chunk + self.avatar + self.schedule)


def dit_flops(
    config: DiTConfig, grid: tuple[int, int, int], *, text_rows: int | None = None, persons: int = 1
) -> DiTFlops:
    """Count for a token grid (frames, rows, columns).

    Args:
        config: Shape of the model.
        grid: Token grid.
        text_rows: Text keys in cross-attention; by default all ``text_len`` rows.
        persons: Voices.
    """
    tokens = grid[0] * grid[1] * grid[2]
    text = config.text_len if text_rows is None else text_rows
    dim, layers = config.dim, config.num_layers
    patch = config.patch_size[1] * config.patch_size[2]
    voices = grid[0] * persons * config.context_tokens
    square = dim * dim
    linear = tokens * (8 * square + 2 * dim * config.ffn_dim)
    keys = tokens + text + config.image_len + persons * config.context_tokens
    edge = tokens * dim * patch * 2 * config.out_dim
    entries = config.audio_window + (grid[0] - 1) * (config.audio_window + config.vae_scale - 1)
    hidden = config.intermediate_dim
    audio = persons * (
        entries * config.audio_features * hidden
        + grid[0] * hidden * (hidden + config.context_tokens * config.output_dim)
    )
    context = text * (config.text_dim * dim + square) + config.image_len * config.image_dim * (
        config.image_dim + dim
    )
    return DiTFlops(
        step=2 * (layers * (linear + 2 * tokens * keys * dim) + edge),
        chunk=2 * (audio + layers * voices * config.output_dim * 2 * dim),
        avatar=2
        * (
            context
            + layers * (text + config.image_len) * 2 * square
            + tokens * dim * patch * (config.in_dim - config.out_dim)
        ),
        schedule=2 * (config.freq_dim * dim + square + 6 * square),
    )
