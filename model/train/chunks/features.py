"""Features that the frozen networks compute from clips: once per clip, and kept in memory.

A clip is split into chunks like a stream: each repeats the last five frames of the previous one,
and hears the last seconds up to its own end. The portrait is the clip's last frame, which no chunk
has. Prompts are encoded before anything else, so that their encoder, the largest, is freed again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from livetalk_kernels.errors import UserError

from ...avatar import before_grey
from ...config import CHUNK_FRAMES, MOTION_LATENTS, NEW_FRAMES, DiTConfig
from ...encoders.audio import AudioEncoder, AudioStream
from ...encoders.conditions import ConditionEncoders
from ...preparation import DEFAULT_PROMPT, check_embeddings, portrait_db
from ...stream.chunk import from_uint8
from ...vae import SPATIAL, TEMPORAL, VAE
from ..data.clips import Clips
from ..data.windows import frames_of_chunks
from ..draws import Draws
from ..faces.mouth import FPS, HOP
from ..settings import Run
from ..vae.picture_losses import face_weight
from ..vae.whole import encode_whole


@dataclass(frozen=True, kw_only=True)
class Features:
    """A clip of K chunks.

    Attributes:
        latents: [K, 16, 9, h, w].
        weight: [K, 1, 9, h, w] weight of each position, if the mouth counts more.
        windows: [K, 33, window, layers, channels] audio features.
        portrait: [16, 9, h, w] latents of the portrait and grey.
        picture: [3, 1, H, W] the portrait, -1 to 1.
        image: [image_len, image_dim] its image features.
        text: [rows, text_dim] the prompt's embedding.
    """

    latents: Tensor
    weight: Tensor
    windows: Tensor
    portrait: Tensor
    picture: Tensor
    image: Tensor
    text: Tensor


class FeatureData:
    """Batches for the transformer: single chunks, or several in a row from the start of a clip."""

    def __init__(
        self,
        clips: Clips,
        run: Run,
        vae: VAE,
        encoder: AudioEncoder,
        config: DiTConfig,
        encoders: ConditionEncoders,
        *,
        chunks: int | None = None,
    ) -> None:
        """Select clips that are long enough, and encode their prompts.

        Args:
            clips: The clips.
            run: The settings.
            vae: Frozen.
            encoder: Frozen.
            config: Configuration of the transformer.
            encoders: Encoders of prompts and portraits that belong to it.
            chunks: How many in a row; None for single ones, from anywhere.

        Raises:
            UserError: There are none, or an encoder's weights are missing or do not fit.
        """
        self._clips, self._run, self._draws = clips, run, Draws(seed=run.seed)
        self._vae, self._encoder, self._config, self._chunks = vae, encoder, config, chunks
        needed = frames_of_chunks(chunks or 1) + 1  # including the portrait
        self._usable = [n for n, entry in enumerate(clips.index.clips) if entry.frames >= needed]
        if not self._usable:
            raise UserError(
                f"{clips.folder}: no clip has {chunks or 1} chunks in a row; make clips of "
                f"{needed / FPS:.1f} --seconds or more"
            )
        self._prompts = self._encode_prompts(encoders)
        self._encode_image = encoders.load_image()
        self._kept: dict[int, Features] = {}

    def batch(self, step: int, micro: int) -> Mapping[str, Tensor]:
        """Return what `tasks` lists for the stage."""
        first = micro * self._run.micro_batch
        samples = range(first, first + self._run.micro_batch)
        which, where = (
            self._draws.uniform(f"chunk {what}", step=step, samples=samples).tolist()
            for what in ("clip", "place")
        )
        last = len(self._usable) - 1
        rows = [self._features(self._usable[min(int(w * (last + 1)), last)]) for w in which]
        batch = self._batch(rows)
        if self._chunks is None:
            places = [
                min(int(share * len(row.latents)), len(row.latents) - 1)
                for share, row in zip(where, rows, strict=True)
            ]
            return batch | {
                name: torch.stack([getattr(r, name)[p] for r, p in zip(rows, places, strict=True)])
                for name in ("latents", "weight", "windows")
            }
        latents, windows = (
            torch.stack([getattr(row, name)[: self._chunks] for row in rows])
            for name in ("latents", "windows")
        )
        found = {"windows": windows, "start": batch["portrait"][:, :, :1]}
        method = self._run.distillation
        if method.history == "oracle" or method.regression:
            found |= {"latents": latents, "motion": latents[:, :, :, :MOTION_LATENTS]}
        return batch | found

    def first_chunk(self) -> Mapping[str, Tensor]:
        """Return the first chunk of the first clip, as a batch of one."""
        row = self._features(self._usable[0])
        return self._batch([row]) | {"latents": row.latents[:1], "windows": row.windows[:1]}

    def portrait_db(self, clips: int) -> float:
        """Compute the worst PSNR in dB at which the VAE reconstructs some clips' portraits."""
        rows = [self._features(clip) for clip in self._usable[:clips]]
        device = self._vae.conv1.weight.device
        return min(
            portrait_db(self._vae, row.picture[None].to(device), row.portrait[None].to(device))
            for row in rows
        )

    def _batch(self, rows: Sequence[Features]) -> dict[str, Tensor]:
        """Stack what all chunks of a clip share."""
        shared = {
            name: torch.stack([getattr(row, name) for row in rows])
            for name in ("portrait", "picture", "image")
        }
        return shared | {"text": pad_sequence([row.text for row in rows], batch_first=True)}

    def _prompt(self, clip: int) -> str:
        return self._clips.prompt(clip) or DEFAULT_PROMPT

    @torch.no_grad()
    def _encode_prompts(self, encoders: ConditionEncoders) -> Mapping[str, Tensor]:
        """Encode each prompt once, [rows, text_dim] on the CPU."""
        encode = encoders.load_text()
        found = {}
        for prompt in sorted({self._prompt(clip) for clip in self._usable}):
            found[prompt] = encode(prompt).float().cpu()
            check_embeddings(self._config, found[prompt], None)
        return found

    def _features(self, clip: int) -> Features:
        if clip not in self._kept:
            self._kept[clip] = self._compute(clip)
        return self._kept[clip]

    @torch.no_grad()
    def _compute(self, clip: int) -> Features:
        frames, sound, index = self._clips.frames(clip), self._clips.sound(clip), self._clips.index
        pixels = frames.permute(3, 0, 1, 2)[None].to(self._vae.conv1.weight.device)
        video = from_uint8(pixels, torch.float32)
        stream = AudioStream(self._encoder, fps=FPS, frames=CHUNK_FRAMES)
        weight = face_weight(self._clips.truth(clip)[None], index.truth, index.size)
        latents, weights, windows, heard = [], [], [], 0
        for start in range(0, len(frames) - CHUNK_FRAMES, NEW_FRAMES):
            end = start + CHUNK_FRAMES
            latents.append(encode_whole(self._vae, video[:, :, start:end])[0])
            weights.append(of_latents(weight[:, start:end]))
            windows.append(stream.push(sound[heard * HOP : end * HOP]))
            heard = end
        picture = video[:, :, -1:]
        image = self._encode_image(picture[0, :, 0]).float().cpu()
        check_embeddings(self._config, None, image)
        return Features(
            latents=torch.stack(latents).cpu(),
            weight=torch.stack(weights),
            windows=torch.stack(windows).cpu(),
            portrait=encode_whole(self._vae, before_grey(picture))[0].cpu(),
            picture=picture[0].cpu(),
            image=image[0],
            text=self._prompts[self._prompt(clip)],
        )


def of_latents(values_BTHW: Tensor) -> Tensor:
    """Average over the pixels of each latent, [B, 1 + 4 k, H, W] -> [B, 1 + k, H/8, W/8]."""
    pooled = F.avg_pool2d(values_BTHW, SPATIAL)
    rest = pooled[:, 1:].unflatten(1, (-1, TEMPORAL)).mean(2)
    return torch.cat((pooled[:, :1], rest), dim=1)
