"""The whole model, loaded: prepare avatars, open sessions."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_kernels.errors import UserError
from livetalk_kernels.ops import Ops

from .avatar import Avatar
from .checkpoint import CheckpointFolder
from .chunk import CHUNK_FRAMES, StreamOptions
from .config import DiTConfig, Preset, VAEConfig, get_preset
from .dit import DiT
from .encoders.audio import AudioEncoder
from .encoders.image import ImageEncoder, RandomImageEncoder
from .encoders.text import RandomTextEncoder, TextEncoder
from .image_io import fit_portrait, load_portrait
from .stream import Session
from .vae import VAE
from .weights import load_module, open_weights, random_module

DEFAULT_PROMPT = (
    "A person is talking to the camera. The head moves gently, the background is still."
)
DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
RANDOM_NOTE = "random weights"
_SEED = 0  # of presets without a checkpoint


@dataclass(frozen=True, kw_only=True)
class LoadTimes:
    """Seconds that loading took, per part."""

    dit: float
    vae: float
    audio_encoder: float

    @property
    def total(self) -> float:
        """All parts together."""
        return self.dit + self.vae + self.audio_encoder


class Pipeline:
    """A loaded model. Make it with `load_pipeline`; open as many sessions as you like.

    Attributes:
        dit: The transformer.
        vae: The VAE.
        audio_encoder: The audio encoder.
        ops: The bound ops; ``ops.chosen`` names the backends.
        size: Default picture size (height, width) in pixels.
        device: Where it runs.
        dtype: Of the transformer and the VAE.
        reuse: False: the published schedule, which computes constants again and again.
        random: The weights are random: the pictures mean nothing, the speed does.
        fingerprint: Identifies the configuration and the weights of the VAE, for avatar files.
        load_times: How long loading took.
    """

    def __init__(
        self,
        *,
        dit: DiT,
        vae: VAE,
        audio_encoder: AudioEncoder,
        size: tuple[int, int],
        checkpoint: CheckpointFolder | None,
        load_times: LoadTimes,
    ) -> None:
        """Put loaded parts together."""
        self.dit, self.vae, self.audio_encoder, self.size = dit, vae, audio_encoder, size
        self.ops: Ops = dit.ops
        self.device, self.dtype, self.reuse = dit.device, dit.dtype, dit.reuse
        self.random = checkpoint is None
        self.load_times = load_times
        self.fingerprint = _fingerprint(dit.config, vae)
        self._checkpoint = checkpoint

    def prepare(
        self,
        portrait: str | Path | Image.Image,
        *,
        prompt: str = DEFAULT_PROMPT,
        size: tuple[int, int] | None = None,
        prompt_embeds: Tensor | None = None,
        image_embeds: Tensor | None = None,
    ) -> Avatar:
        """Make an avatar of a portrait and a prompt.

        The text and image encoders are loaded for this call only, and only where their embedding
        is not given.

        Args:
            portrait: Picture file or PIL image; it is scaled to cover ``size`` and cropped.
            prompt: What is to be seen.
            size: Height and width in pixels, multiples of 16; by default the model's.
            prompt_embeds: [L, 4096], instead of encoding the prompt.
            image_embeds: [1, 257, 1280], instead of encoding the picture.

        Returns:
            The avatar.

        Raises:
            UserError: The picture, the size or an embedding is no good, or an encoder's weights
                are missing.
        """
        height, width = check_size(size or self.size)
        image = portrait if isinstance(portrait, Image.Image) else load_portrait(portrait)
        pixels = fit_portrait(image, (height, width))
        video = ((pixels.to(self.device).to(self.dit.dtype) / 255 - 0.5) * 2)[None, :, None]
        notes = []
        with torch.inference_mode():
            condition = self._encode_condition(video)
            context = prompt_embeds
            if context is None:
                context, note = self._encode_prompt(prompt)
                notes.append(note)
            features = image_embeds
            if features is None:
                features, note = self._encode_image(video[0, :, 0].float())
                notes.append(note)
        self._check_embeddings(context, features)
        return Avatar(
            context=context.cpu(),
            clip_fea=features.cpu(),
            condition=condition.cpu(),
            portrait=pixels,
            model=self.fingerprint,
            prompt="" if prompt_embeds is not None else prompt,
            note=", ".join(sorted({note for note in notes if note})),
        )

    def session(self, avatar: Avatar, *, options: StreamOptions | None = None) -> Session:
        """Open a stream.

        Args:
            avatar: From `prepare`, or `Avatar.load`.
            options: Seed, steps, shift, colour correction and frame rate.

        Raises:
            UserError: The avatar was made by another model.
        """
        if avatar.model != self.fingerprint:
            raise UserError(
                f"the avatar was made by model {avatar.model}, this is {self.fingerprint}; "
                "prepare it again with this checkpoint or preset"
            )
        return Session(
            self.dit,
            self.vae,
            self.audio_encoder,
            avatar,
            options or StreamOptions(),
            reuse=self.reuse,
        )

    def _encode_condition(self, video: Tensor) -> Tensor:
        """Latents of the portrait followed by grey frames, [16, 9, H/8, W/8]."""
        grey = torch.zeros_like(video).expand(-1, -1, CHUNK_FRAMES - 1, -1, -1)
        return self.vae.encode(torch.cat((video, grey), dim=2))[0]

    def _encode_prompt(self, prompt: str) -> tuple[Tensor, str]:
        config = self.dit.config
        if self._checkpoint is None:
            encoder = RandomTextEncoder(width=config.text_dim, seed=_SEED)
            return encoder.encode(prompt)[: config.text_len], RANDOM_NOTE
        folder = self._checkpoint
        text_encoder = TextEncoder.from_checkpoint(
            folder.text_encoder,
            folder.tokenizer,
            device=self.device,
            dtype=self.dtype,
        )
        return text_encoder.encode(prompt), ""

    def _encode_image(self, image: Tensor) -> tuple[Tensor, str]:
        if self._checkpoint is None:
            random = RandomImageEncoder(width=self.dit.config.image_dim, seed=_SEED)
            return random.encode(image.cpu()), RANDOM_NOTE
        dtype = torch.float16 if self.device.type == "cuda" else torch.float32
        encoder = ImageEncoder.from_checkpoint(
            self._checkpoint.image_encoder, device=self.device, dtype=dtype
        )
        return encoder.encode(image), ""

    def _check_embeddings(self, context: Tensor, features: Tensor) -> None:
        config = self.dit.config
        if context.dim() != 2 or context.shape[1] != config.text_dim:
            raise UserError(
                f"prompt embedding {list(context.shape)}: [L, {config.text_dim}] is needed; "
                "use the model's own text encoder"
            )
        if not 0 < len(context) <= config.text_len:
            raise UserError(
                f"prompt embedding of {len(context)} rows: 1 to {config.text_len} are allowed; "
                "shorten the prompt"
            )
        if tuple(features.shape) != (1, config.image_len, config.image_dim):
            raise UserError(
                f"image embedding {list(features.shape)}: "
                f"[1, {config.image_len}, {config.image_dim}] is needed; "
                "use the model's own image encoder"
            )


def load_pipeline(
    *,
    preset: str | None = None,
    checkpoint: str | Path | None = None,
    audio_encoder: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    backend: KernelConfig | None = None,
    reuse: bool = True,
) -> Pipeline:
    """Load a model.

    Args:
        preset: ``14b``, ``small``, ``mid`` or ``tiny``: random weights of that size. ``tiny`` if
            neither a preset nor a checkpoint is given.
        checkpoint: Folder of the published DiT, VAE, T5 and CLIP.
        audio_encoder: Folder of wav2vec2; needed with ``checkpoint``.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: the GPU where there is one.
        dtype: ``fp32``, ``bf16``, or ``auto``: bf16 on a GPU, else fp32.
        backend: Kernel backends; by default the environment's, else the best for each op.
        reuse: False: the published schedule, for comparison.

    Returns:
        The pipeline.

    Raises:
        UserError: The choice is impossible, or weights are missing or damaged.
    """
    if preset and checkpoint:
        raise UserError("--preset and --checkpoint: give one of them, not both")
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    backend = KernelConfig.from_sources() if backend is None else backend
    if checkpoint is None:
        if audio_encoder is not None:
            raise UserError(
                "--audio-encoder: goes with --checkpoint; a preset has an encoder of its own"
            )
        return _random_pipeline(get_preset(preset or "tiny"), where, kind, backend, reuse)
    if audio_encoder is None:
        raise UserError(
            f"{checkpoint}: needs --audio-encoder DIR as well, the folder of wav2vec2-base"
        )
    folder = CheckpointFolder(checkpoint)
    begin = time.perf_counter()
    encoder = AudioEncoder.from_folder(audio_encoder, device=where)
    encoder_s = time.perf_counter() - begin
    config = folder.dit_config(encoder.layers, encoder.width)
    dit, vae = _build(config, folder.vae_config(), where, kind, backend, reuse)
    begin = time.perf_counter()
    with open_weights(folder.dit) as files:
        load_module(dit, files, dtype=kind, device=where, key_map=dit.key_map())
    dit_s = time.perf_counter() - begin
    begin = time.perf_counter()
    with open_weights(folder.vae) as files:
        load_module(vae, files, dtype=kind, device=where)
    vae.prepare()
    return Pipeline(
        dit=dit,
        vae=vae,
        audio_encoder=encoder,
        size=get_preset("14b").size,
        checkpoint=folder,
        load_times=LoadTimes(dit=dit_s, vae=time.perf_counter() - begin, audio_encoder=encoder_s),
    )


def _random_pipeline(
    preset: Preset,
    device: torch.device,
    dtype: torch.dtype,
    backend: KernelConfig,
    reuse: bool,
) -> Pipeline:
    dit, vae = _build(preset.dit, preset.vae, device, dtype, backend, reuse)
    begin = time.perf_counter()
    random_module(dit, seed=_SEED, dtype=dtype, device=device, key_map=dit.key_map())
    dit_s = time.perf_counter() - begin
    begin = time.perf_counter()
    random_module(vae, seed=_SEED, dtype=dtype, device=device)
    vae.prepare()
    vae_s = time.perf_counter() - begin
    begin = time.perf_counter()
    encoder = AudioEncoder.random(preset.audio, seed=_SEED, device=device)
    return Pipeline(
        dit=dit,
        vae=vae,
        audio_encoder=encoder,
        size=preset.size,
        checkpoint=None,
        load_times=LoadTimes(dit=dit_s, vae=vae_s, audio_encoder=time.perf_counter() - begin),
    )


def _build(
    dit: DiTConfig,
    vae: VAEConfig,
    device: torch.device,
    dtype: torch.dtype,
    backend: KernelConfig,
    reuse: bool,
) -> tuple[DiT, VAE]:
    """Both modules on the meta device, with their ops bound."""
    ops = bind_ops(backend, device=device, dtype=dtype, D=dit.dim, H=dit.num_heads, d=dit.head_dim)
    with torch.device("meta"):
        return DiT(dit, ops, reuse=reuse), VAE(vae, ops, reuse=reuse)


def check_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size itself, if the model can make pictures of it.

    Raises:
        UserError: Height or width is not a positive multiple of 16.
    """
    height, width = size
    for name, pixels in (("height", height), ("width", width)):
        if pixels <= 0 or pixels % 16:
            near = max(16, round(pixels / 16) * 16)
            raise UserError(
                f"--size {height}x{width}: the {name} must be a multiple of 16; use {near}"
            )
    return height, width


def resolve_device(name: str) -> torch.device:
    """Device of that name.

    Raises:
        UserError: The name is unknown, or that device is not here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: unknown; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise UserError(
                f"--device {name}: {count} CUDA devices are usable here; "
                "see 'livetalk doctor', or use --device cpu"
            )
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Dtype of that name; ``auto`` is bf16 on a GPU and fp32 on a CPU.

    Raises:
        UserError: The name is unknown.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in DTYPES:
        raise UserError(f"--dtype {name}: unknown; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _fingerprint(config: DiTConfig, vae: VAE) -> str:
    """12 hex digits of the configuration and of some VAE weights, the same in every dtype."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    digest.update(json.dumps(dataclasses.asdict(vae.config), sort_keys=True).encode())
    weights = vae.get_parameter("conv1.weight").detach().to("cpu", torch.bfloat16).contiguous()
    digest.update(weights.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:12]
