"""Batches of features: single chunks for stage 1, several in a row for stage 2.

Prompts are encoded before anything else, so that their encoder, the largest, is freed again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from livetalk_kernels.errors import UserError

from ...config import MOTION_LATENTS, DiTConfig
from ...encoders.audio import AudioEncoder
from ...encoders.conditions import ConditionEncoders
from ...preparation import DEFAULT_PROMPT, check_embeddings, portrait_db
from ...stream.chunk import from_uint8
from ...vae import VAE
from ..data.clips import Clips
from ..data.windows import frames_of_chunks
from ..draws import Draws
from ..faces.mouth import FPS
from ..loop.loop import At
from ..settings import Run
from .feature_files import FeatureFiles
from .features import FIRST, LAST, Features, compute_features


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The networks that compute features.

    Attributes:
        vae: Codes pictures.
        encoder: Hears.
        encoders: Encode prompts and portraits.
        key: Digest of all but the prompts'; see `features_key`.
    """

    vae: VAE
    encoder: AudioEncoder
    encoders: ConditionEncoders
    key: str


class FeatureData:
    """Batches for the transformer: single chunks, or several in a row from the start of a clip."""

    def __init__(
        self,
        clips: Clips,
        run: Run,
        frozen: Frozen,
        config: DiTConfig,
        *,
        chunks: int | None = None,
    ) -> None:
        """Select clips that are long enough, and encode their prompts.

        Args:
            clips: The clips.
            run: The settings.
            frozen: The networks that compute features.
            config: Configuration of the transformer.
            chunks: How many in a row; None for single ones, from anywhere.

        Raises:
            UserError: There are none, or an encoder's weights are missing or do not fit.
        """
        self._clips, self._run, self._draws = clips, run, Draws(seed=run.seed)
        self._vae, self._config, self._chunks = frozen.vae, config, chunks
        needed = frames_of_chunks(chunks or 1) + 1  # including the portrait
        self._usable = [n for n, entry in enumerate(clips.index.clips) if entry.frames >= needed]
        if not self._usable:
            raise UserError(
                f"{clips.folder}: no clip has {chunks or 1} chunks in a row; make clips of "
                f"{needed / FPS:.1f} --seconds or more"
            )
        self._prompts = self._encode_prompts(frozen.encoders)
        encode_image = frozen.encoders.load_image()

        def compute(clip: int) -> Features:
            found = compute_features(
                clips, clip, vae=frozen.vae, encoder=frozen.encoder, encode_image=encode_image
            )
            check_embeddings(config, None, found.images[:1])
            return found

        self._files = FeatureFiles(clips, frozen.key, compute)

    def batch(self, at: At) -> Mapping[str, Tensor]:
        """Return what `tasks` lists for the stage."""
        which, where, whom = (
            self._draws.uniform(f"chunk {what}", step=at.step, samples=at.samples).tolist()
            for what in ("clip", "place", "portrait")
        )
        last = len(self._usable) - 1
        clips = [self._usable[min(int(share * (last + 1)), last)] for share in which]
        rows = [self._files.read(clip) for clip in clips]
        if self._chunks is None:
            places = [
                min(int(share * len(row.latents)), len(row.latents) - 1)
                for share, row in zip(where, rows, strict=True)
            ]
            # The first chunk has the clip's first frame, which would not be hidden from it.
            portraits = [
                FIRST if place > 0 and share < 0.5 else LAST
                for place, share in zip(places, whom, strict=True)
            ]
            return self._shared(clips, rows, portraits) | {
                name: torch.stack([getattr(r, name)[p] for r, p in zip(rows, places, strict=True)])
                for name in ("latents", "weight", "windows")
            }
        batch = self._shared(clips, rows, [LAST] * len(rows))
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
        clip = self._usable[0]
        row = self._files.read(clip)
        chunk = {"latents": row.latents[:1], "windows": row.windows[:1]}
        return self._shared([clip], [row], [LAST]) | chunk

    def portrait_db(self, clips: int) -> float:
        """Compute the worst PSNR in dB at which the VAE reconstructs some clips' portraits."""
        device = self._vae.conv1.weight.device
        return min(
            portrait_db(
                self._vae,
                self._picture(clip, LAST)[None].to(device),
                self._files.read(clip).portraits[LAST:].to(device),
            )
            for clip in self._usable[:clips]
        )

    def _shared(
        self, clips: Sequence[int], rows: Sequence[Features], portraits: Sequence[int]
    ) -> dict[str, Tensor]:
        """Stack what all chunks of a clip share."""
        prompts = [self._prompts[self._prompt(clip)] for clip in clips]
        chosen = list(zip(clips, rows, portraits, strict=True))
        return {
            "portrait": torch.stack([row.portraits[which] for _, row, which in chosen]),
            "picture": torch.stack([self._picture(clip, which) for clip, _, which in chosen]),
            "image": torch.stack([row.images[which] for _, row, which in chosen]),
            "text": pad_sequence(prompts, batch_first=True),
        }

    def _picture(self, clip: int, which: int) -> Tensor:
        """Return a portrait, [3, 1, H, W] in -1..1."""
        frames = self._clips.frames(clip)
        frame = frames[-1:] if which == LAST else frames[:1]
        return from_uint8(frame.permute(3, 0, 1, 2), torch.float32)

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
