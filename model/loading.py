"""Load a model: from a published checkpoint, or a preset with random weights."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import torch
from torch import nn

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_kernels.errors import UserError

from .checkpoint import CheckpointFolder
from .config import DiTConfig, get_preset
from .dit import DiT
from .encoders.audio import AudioEncoder
from .pipeline import LoadTimes, Pipeline
from .preparation import RANDOM_SEED, Preparer
from .vae import VAE
from .weights import Slot, load_module, open_weights, random_module

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
DEFAULT_PRESET = "tiny"
_PUBLISHED_PRESET = "14b"  # whose picture size checkpoints have

_T = TypeVar("_T")


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
        checkpoint: Folder of the published DiT and VAE (and T5 and CLIP, to prepare avatars).
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
    if checkpoint is not None and audio_encoder is None:
        raise UserError(
            f"{checkpoint}: needs --audio-encoder DIR as well, the folder of wav2vec2-base"
        )
    if checkpoint is None and audio_encoder is not None:
        raise UserError(
            f"--audio-encoder {audio_encoder}: goes with --checkpoint; "
            "a preset has an encoder of its own"
        )
    source = _Source.find(preset, checkpoint, device, dtype, backend, reuse)
    encoder, encoder_s = _timed(lambda: source.load_audio_encoder(audio_encoder))
    config = source.dit_config(encoder)
    preparer, vae_s = _timed(lambda: source.load_preparer(config))
    dit, dit_s = _timed(lambda: source.load_dit(config))
    return Pipeline(
        dit=dit,
        audio_encoder=encoder,
        preparer=preparer,
        load_times=LoadTimes(dit=dit_s, vae=vae_s, audio_encoder=encoder_s),
    )


def load_preparer(
    *,
    preset: str | None = None,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    backend: KernelConfig | None = None,
    reuse: bool = True,
) -> Preparer:
    """Load what makes avatars: no transformer, no audio encoder. Arguments as `load_pipeline`.

    Raises:
        UserError: The choice is impossible, or weights are missing or damaged.
    """
    source = _Source.find(preset, checkpoint, device, dtype, backend, reuse)
    return source.load_preparer(source.dit_config(None))


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where weights come from and how they will run; everything is resolved and checked."""

    preset: str
    folder: CheckpointFolder | None
    device: torch.device
    dtype: torch.dtype
    backend: KernelConfig
    reuse: bool

    @classmethod
    def find(
        cls,
        preset: str | None,
        checkpoint: str | Path | None,
        device: str,
        dtype: str,
        backend: KernelConfig | None,
        reuse: bool,
    ) -> Self:
        if preset and checkpoint:
            raise UserError("--preset and --checkpoint: give one of them, not both")
        where = resolve_device(device)
        default = DEFAULT_PRESET if checkpoint is None else _PUBLISHED_PRESET
        return cls(
            preset=get_preset(preset or default).name,
            folder=None if checkpoint is None else CheckpointFolder(checkpoint),
            device=where,
            dtype=resolve_dtype(dtype, where),
            backend=KernelConfig.from_sources() if backend is None else backend,
            reuse=reuse,
        )

    def dit_config(self, encoder: AudioEncoder | None) -> DiTConfig:
        if self.folder is None:
            return get_preset(self.preset).dit
        if encoder is None:
            return self.folder.dit_config()
        return self.folder.dit_config(encoder.layers, encoder.width)

    def load_audio_encoder(self, path: str | Path | None) -> AudioEncoder:
        if path is None:
            config = get_preset(self.preset).audio
            return AudioEncoder.random(config, seed=RANDOM_SEED, device=self.device)
        return AudioEncoder.from_folder(path, device=self.device)

    def load_dit(self, config: DiTConfig) -> DiT:
        ops = bind_ops(
            self.backend,
            device=self.device,
            dtype=self.dtype,
            D=config.dim,
            H=config.num_heads,
            d=config.head_dim,
        )
        with torch.device("meta"):
            dit = DiT(config, ops, reuse=self.reuse)
        self._fill(dit, None if self.folder is None else self.folder.dit, dit.key_map())
        return dit

    def load_preparer(self, config: DiTConfig) -> Preparer:
        preset, folder = get_preset(self.preset), self.folder
        ops = bind_ops(self.backend, device=self.device, dtype=self.dtype)
        with torch.device("meta"):
            shape = preset.vae if folder is None else folder.vae_config()
            vae = VAE(shape, ops, reuse=self.reuse)
        self._fill(vae, None if folder is None else folder.vae, None)
        vae.prepare()
        return Preparer(config=config, vae=vae, size=preset.size, checkpoint=folder)

    def _fill(
        self, module: nn.Module, weights: Path | None, key_map: Mapping[str, Slot] | None
    ) -> None:
        dtype, device = self.dtype, self.device
        if weights is None:
            random_module(module, seed=RANDOM_SEED, dtype=dtype, device=device, key_map=key_map)
            return
        with open_weights(weights) as files:
            load_module(module, files, dtype=dtype, device=device, key_map=key_map)


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
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: {torch.cuda.device_count()} CUDA devices are usable here; "
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


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    """Result and seconds."""
    begin = time.perf_counter()
    return work(), time.perf_counter() - begin
