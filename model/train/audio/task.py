"""Training of the audio encoder: it predicts from the sound what a mouth does.

It learns through a linear readout of all its layers, which is then discarded: the transformer uses
the layers themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from livetalk_kernels.errors import UserError

from ...encoders.audio import interpolate, normalize_loudness, unit_variance
from ...encoders.loudness import LoudnessMeter
from ...encoders.wav2vec2 import Wav2Vec2
from ..data.clips import Clips
from ..data.windows import WindowReader
from ..demo import new_audio_network
from ..draws import Draws
from ..faces.mouth import FPS, HOP
from ..loop.loop import At
from ..loop.place import Place
from ..loop.saving import State
from ..loop.training import Training, averaged, start_state
from ..settings import Run
from .export import AUDIO_WEIGHTS, export_audio

AUDIO_TURN = "audio"
MOUTH = "opening", "width"
"""Columns of the truth that are learned."""
FRAMES = 33
SECONDS = 8
"""Seconds of sound that the encoder sees at a time, as in a stream; silence before a clip."""
_HEIGHT, _STEP = 48, 8  # pixels per curve, and per frame


class MouthReader(nn.Module):
    """An audio encoder, and a linear layer that predicts a mouth from its layers.

    Attributes:
        encoder: The encoder.
        head: [layers * width] -> opening and width.
    """

    def __init__(self, encoder: Wav2Vec2) -> None:
        """Start with a head that predicts 0."""
        super().__init__()
        self.encoder = encoder
        config = encoder.config
        self.head = nn.Linear(config.layers * config.width, len(MOUTH))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, values_BN: Tensor) -> Tensor:
        """Map normalised samples [B, N] of whole frames to opening and width [B, L, 2]."""
        frames = values_BN.shape[1] * FPS // self.encoder.config.sample_rate
        features_BLC = interpolate(self.encoder.feature_extractor(values_BN), frames)
        read_BLK: Tensor = self.head(torch.cat(self.encoder(features_BLC), dim=-1))
        return read_BLK


class AudioData:
    """Windows of sound, as in a stream, and the mouths at their ends."""

    def __init__(self, clips: Clips, run: Run) -> None:
        """Select clips that are long enough and have known mouths.

        Raises:
            UserError: There are none.
        """
        names = clips.index.truth
        if not set(MOUTH) <= set(names):
            raise UserError(
                f"{clips.folder}: nothing is known of its mouths; an audio encoder learns from "
                "drawn clips, 'livetalk dataset --synthetic 256 --output DIR'"
            )
        self._columns = [names.index(name) for name in MOUTH]
        self._run = run
        self._meter = LoudnessMeter(FPS * HOP)
        self._reader = WindowReader(
            clips, Draws(seed=run.seed), frames=FRAMES, lead=SECONDS * FPS - FRAMES
        )

    def batch(self, at: At) -> Mapping[str, Tensor]:
        """Return normalised ``values`` [B, 128000], and ``mouth`` [B, 33, 2] of the last frames."""
        return self.read(at.step, at.samples, "audio")

    def read(self, step: int, samples: Sequence[int], purpose: str) -> Mapping[str, Tensor]:
        """Return the same for any samples."""
        windows = self._reader.read(step=step, samples=samples, purpose=purpose)
        values = [
            torch.from_numpy(unit_variance(normalize_loudness(wave.numpy(), self._meter)))
            for wave in windows.audio
        ]
        return {"values": torch.stack(values), "mouth": windows.truth[..., self._columns]}


@dataclass(frozen=True, kw_only=True)
class AudioTask:
    """Predict the mouth from the sound."""

    def turns(self, step: int) -> Sequence[str]:
        """Train the reader in every update."""
        return (AUDIO_TURN,)

    def loss(
        self, state: State, turn: str, batch: Mapping[str, Tensor], at: At
    ) -> tuple[Tensor, Mapping[str, float]]:
        """Compute the mean square error."""
        mouth = batch["mouth"]
        read = state.networks[turn](batch["values"])[:, -mouth.shape[1] :]
        return (read - mouth).square().mean(), {}


def audio_training(run: Run, clips: Clips, place: Place | None = None) -> Training:
    """Set up the training of a new audio encoder.

    Args:
        run: The settings.
        clips: The data.
        place: The device and the ranks, each of which has all of it; by default one, on the CPU.

    Raises:
        UserError: No clip is long enough, or nothing is known of its mouths.
    """
    place = place or Place()
    reader, data = MouthReader(new_audio_network(run.seed)).requires_grad_(), AudioData(clips, run)
    reader.to(place.device)
    state = start_state(run, {AUDIO_TURN: reader}, {AUDIO_TURN: run.learning_rate})
    heard = data.read(0, [0], "audio sample")

    @torch.no_grad()
    def sample() -> Tensor:
        with averaged(state, AUDIO_TURN) as network:
            read = network(place.take(heard["values"]))[0, -FRAMES:]
            return curves(heard["mouth"][0], read.cpu())

    def finish(folder: Path) -> Sequence[Path]:
        with averaged(state, AUDIO_TURN) as network:
            assert isinstance(network, MouthReader)
            if place.leads:
                export_audio(network.encoder, folder)
        return [folder / AUDIO_WEIGHTS]

    return Training(task=AudioTask(), state=state, data=data, sample=sample, finish=finish)


def curves(true_LK: Tensor, read_LK: Tensor) -> Tensor:
    """Plot each value over time, the true ones above, predicted ones below, uint8 [H, W, 3]."""
    length = len(true_LK)
    image = Image.new("RGB", (length * _STEP, 2 * _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for top, values in ((0, true_LK), (_HEIGHT, read_LK)):
        for column, colour in enumerate(("firebrick", "steelblue")):
            heights = (top + (_HEIGHT - 1) * (1 - values[:, column].clamp(0, 1))).tolist()
            draw.line([(_STEP * n, y) for n, y in enumerate(heights)], fill=colour, width=2)
    width, height = image.size
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, 3)
