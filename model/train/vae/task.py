"""Training of the VAE: its data, its losses, and what the product reads.

It starts as a principal component code. Residual blocks at the smaller resolutions join first: they
are cheapest. Windows are long from the start, since a VAE that only saw short videos drifts in
colour, but crops are smaller the longer they are: many small updates teach more than few large
ones. Whole pictures, for edges and attention that no crop shows, come last. The encoder stops
learning before the blocks at full resolution join: it costs nearly as much as the decoder, which
has more to learn.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...config import CHUNK_FRAMES
from ...vae import VAE
from ...weights.checkpoint import VAE_FILE
from ..data.clips import Clips
from ..data.windows import WindowReader, Windows
from ..demo import new_vae
from ..draws import Draws
from ..loop.loop import At
from ..loop.place import Place
from ..loop.saving import State
from ..loop.training import Training, averaged, start_state, truth_above
from ..loop.update import Average, learning
from ..product.export import export_vae
from ..settings import Run
from .picture_losses import CONTRAST, contrast_loss, face_weight, vae_loss
from .start import start_from_pictures
from .whole import NO_BLOCKS, round_trip

VAE_TURN = "vae"
SHORT, MIDDLE, LONG = 9, 17, CHUNK_FRAMES
"""Frames per window."""
BLOCKS = ((0.10, NO_BLOCKS), (0.27, 4), (0.43, 2), (1.0, 1))
"""Fraction of the updates until which residual blocks are `round_trip`'s."""
CODER = 0.43
"""Fraction of the updates in which the encoder learns."""
LATE = 0.86
"""Fraction of the updates from which pictures are whole and must keep their sharpness."""
PICTURES = 160
"""Pictures for the principal components."""
GREY = 0.125
"""Fraction of samples that are a picture followed by grey, as a portrait's latents need."""
_STEP = 16  # sides of crops are multiples of this
_LEAST_PIECE = 32
_SAMPLES = 8  # for the statistics
_FLAT = 1e-3  # spread below which a latent's channel is uninformative


def vae_training(run: Run, clips: Clips, place: Place | None = None) -> Training:
    """Set up the training of a new VAE.

    Args:
        run: The settings.
        clips: The data.
        place: The device and the ranks, each of which has all of it; by default one, on the CPU.

    Raises:
        UserError: No clip is long enough.
    """
    vae, data = new_vae(run.seed), VaeData(clips, run)
    start_from_pictures(vae, _pictures(clips, run))
    vae.requires_grad_()
    place = place or Place()
    vae.to(place.device)
    task, state = (
        VaeTask(run.steps),
        start_state(run, {VAE_TURN: vae}, {VAE_TURN: run.learning_rate}),
    )
    reader = WindowReader(clips, Draws(seed=run.seed), frames=MIDDLE)
    seen = reader.read(step=0, samples=[0], purpose="vae sample").pictures()

    @torch.no_grad()
    def sample() -> Tensor:
        with averaged(state, VAE_TURN) as network:
            blocks = task.blocks(max(0, state.step - 1))
            made = round_trip(network, place.take(seen), blocks=blocks)
            return truth_above(seen[0], made[0].cpu())

    def finish(folder: Path) -> Sequence[Path]:
        if place.leads:
            export_vae(finished_vae(state, clips, run), folder)
        return [folder / VAE_FILE]

    return Training(task=task, state=state, data=data, sample=sample, finish=finish)


@dataclass(frozen=True)
class VaeTask:
    """Encode, decode, compare.

    Attributes:
        steps: Updates of the run.
    """

    steps: int

    @property
    def rest(self) -> int:
        """Index of the first update in which the encoder does not learn."""
        return math.ceil(CODER * self.steps)

    def blocks(self, step: int) -> int:
        """Return which residual blocks take part in an update; see `round_trip`."""
        return next(blocks for share, blocks in BLOCKS if step < share * self.steps or share == 1)

    def turns(self, step: int) -> Sequence[str]:
        """Train the VAE in every update."""
        return (VAE_TURN,)

    def loss(
        self, state: State, turn: str, batch: Mapping[str, Tensor], at: At
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Compute `vae_loss`, and the mean colour difference in 0..255."""
        vae = state.networks[turn]
        assert isinstance(vae, VAE)
        if at.step == self.rest and at.micro == 0 and turn in state.averages:
            settle_encoder(vae, state.averages[turn])
        made = round_trip(
            vae,
            batch["video"],
            blocks=self.blocks(at.step),
            coder_learns=at.step < self.rest,
        )
        pictures = made, batch["video"], batch["weight"]
        loss = vae_loss(*pictures)
        if at.step >= LATE * self.steps:
            loss = loss + CONTRAST * contrast_loss(*pictures)
        off = (made.detach() - batch["video"]).abs().mean()
        return loss, {"levels": 127.5 * float(off)}


class VaeData:
    """Crops of clips, as long and as large as an update requires."""

    def __init__(self, clips: Clips, run: Run) -> None:
        """Select clips that are long enough.

        Raises:
            UserError: There are none.
        """
        self._clips, self._run, self._draws = clips, run, Draws(seed=run.seed)
        self._readers = {
            frames: WindowReader(clips, self._draws, frames=frames)
            for frames in (SHORT, MIDDLE, LONG)
        }

    def batch(self, at: At) -> Mapping[str, Tensor]:
        """Return ``video`` [B, 3, F, h, w], -1 to 1, and ``weight`` [B, F, h, w]."""
        frames, size = self._shape(at)
        windows = self._readers[frames].read(step=at.step, samples=at.samples, purpose="vae")
        video, weight = self._whole(windows, at)
        if size == self._clips.index.size:
            return {"video": video, "weight": weight}
        places = [
            self._draws.uniform(f"vae crop {axis}", step=at.step, samples=at.samples)
            for axis in ("row", "column")
        ]
        return {
            "video": _cropped(video, places, size),
            "weight": _cropped(weight, places, size),
        }

    def _shape(self, at: At) -> tuple[int, tuple[int, int]]:
        """Choose frames and size of an update's pictures; later, half of the windows are long."""
        early = at.step < LATE * self._run.steps
        lengths = (SHORT, MIDDLE, LONG) if early else (SHORT, MIDDLE, LONG, LONG)
        choice = self._draws.below(len(lengths), "vae frames", step=at.step, micro=at.micro)
        frames = lengths[choice]
        whole = self._clips.index.size
        return frames, piece_size(whole, frames) if early else whole

    def _whole(self, windows: Windows, at: At) -> tuple[Tensor, Tensor]:
        video, index = windows.pictures(), self._clips.index
        weight = face_weight(windows.truth, index.truth, index.size)
        grey = self._draws.uniform("vae grey", step=at.step, samples=at.samples) < GREY
        there = windows.condition()[:, :, : video.shape[2]]
        return (
            torch.where(grey.view(-1, 1, 1, 1, 1), there, video),
            weight.masked_fill(grey.view(-1, 1, 1, 1), 1.0),
        )


@torch.no_grad()
def settle_encoder(vae: VAE, average: Average) -> None:
    """Replace the encoder by its average, which fluctuates less, for the decoder to learn from."""
    for name, parameter in learning(vae):
        if name.startswith(("encoder.", "conv1.")):
            parameter.copy_(average.weights[name])


def _pictures(clips: Clips, run: Run) -> Tensor:
    """Collect pictures of all clips, [N, 3, H, W] in -1..1."""
    reader = WindowReader(clips, Draws(seed=run.seed), frames=1)
    windows = reader.read(step=0, samples=range(PICTURES), purpose="vae start")
    return windows.pictures()[:, :, 0]


def piece_size(size: tuple[int, int], frames: int) -> tuple[int, int]:
    """Choose a crop size so that windows of all lengths have about as many pixels.

    Whole pictures for short windows, two thirds of the sides for middle ones, half for long ones,
    in whole steps of 16, but not too small.
    """
    part = {SHORT: 1.0, MIDDLE: 2 / 3, LONG: 1 / 2}[frames]
    rows, columns = (
        side if part == 1 else min(side, max(_LEAST_PIECE, int(part * side) // _STEP * _STEP))
        for side in size
    )
    return rows, columns


def finished_vae(state: State, clips: Clips, run: Run) -> VAE:
    """Return the VAE for use: averaged if there is an average, its latents in the usual range."""
    network = state.networks[VAE_TURN]
    assert isinstance(network, VAE)
    vae = copy.deepcopy(network)
    if VAE_TURN in state.averages:
        state.averages[VAE_TURN].copy_to(vae)
    vae.cpu().requires_grad_(False).prepare()
    reader = WindowReader(clips, Draws(seed=run.seed), frames=LONG)
    windows = (
        reader.read(step=0, samples=[sample], purpose="vae statistics")
        for sample in range(_SAMPLES)
    )
    fold_statistics(vae, torch.cat([vae.encode(window.pictures()) for window in windows]))
    return vae


@torch.no_grad()
def fold_statistics(vae: VAE, latents_BCTHW: Tensor) -> None:
    """Rescale the two outermost convolutions of the latents so that each channel is about N(0, 1).

    The product normalises latents by published constants, which belong to other weights. With ``a``
    and ``b`` the mean and spread of the result here, encoding becomes ``(n - a) / b``, and decoding
    undoes it: the pictures stay the same.

    Args:
        vae: Frozen; modified in place.
        latents_BCTHW: Its latents of videos, normalised by the published constants.
    """
    spread_C, a_C = torch.std_mean(latents_BCTHW.double(), dim=(0, 2, 3, 4))
    b_C = spread_C.clamp_min(_FLAT)
    mean_C, std_C = (torch.tensor(v, dtype=torch.double) for v in (vae.config.mean, vae.config.std))
    shift_C = mean_C + a_C * std_C
    coder, decoder, count = vae.conv1, vae.conv2, vae.config.z_dim
    weight = coder.weight[:count].double() / b_C.view(-1, 1, 1, 1, 1)
    bias = (coder.bias[:count].double() - shift_C) / b_C + mean_C
    coder.weight[:count], coder.bias[:count] = weight.float(), bias.float()
    taps_OC = decoder.weight.double().flatten(1)
    decoder.bias.add_((taps_OC @ (shift_C - b_C * mean_C)).float())
    decoder.weight.copy_((taps_OC * b_C).view_as(decoder.weight).float())
    vae.prepare()


def _cropped(pixels: Tensor, places: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Crop each sample [..., H, W] at the position given by two fractions in 0..1."""
    rows, columns = (
        (share_B * (side - wanted + 1)).long().clamp(max=side - wanted).tolist()
        for share_B, side, wanted in zip(places, pixels.shape[-2:], size, strict=True)
    )
    pieces = [
        sample[..., row : row + size[0], column : column + size[1]]
        for sample, row, column in zip(pixels, rows, columns, strict=True)
    ]
    return torch.stack(pieces)
