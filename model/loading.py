"""Loads a model: from a checkpoint, or a preset with random or bundled weights."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_kernels.errors import UserError
from livetalk_kernels.heap import give_back_freed_memory
from livetalk_kernels.ops import Ops

from .bundled import bundled_weights
from .config import DiTConfig, get_preset, short_dtype
from .dit import DiT
from .encoders.audio import AudioEncoder
from .own import OwnModel
from .pipeline import LoadTimes, Pipeline
from .preparation import Preparer
from .quantize import PRECISIONS
from .stream.team import Team
from .vae import VAE
from .weights.checkpoint import CheckpointFolder
from .weights.fill import Slot, check_module, load_module, open_weights, random_module
from .weights.random_weights import RANDOM_SEED

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
DEFAULT_PRESET = "demo"
_PUBLISHED_PRESET = "14b"  # its picture size applies to checkpoints


def load_pipeline(
    *,
    preset: str | None = None,
    checkpoint: str | Path | None = None,
    audio_encoder: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    precision: str = "exact",
    backend: KernelConfig | None = None,
    reuse: bool = True,
    fuse_bias: bool = False,
    m_major_scales: bool = False,
    team: Team | None = None,
    cuda_graphs: bool = False,
) -> Pipeline:
    """Load a model.

    Args:
        preset: ``14b``, ``small``, ``mid`` or ``tiny``: random weights of that size; ``demo``:
            the trained ones that come with the package, and the default.
        checkpoint: Folder of the published DiT and VAE (and T5 and CLIP, to prepare avatars).
        audio_encoder: Folder of wav2vec2; needed with a ``checkpoint`` that lacks one.
        device: ``cpu``, ``cuda``, ``cuda:N``, or ``auto``: the GPU if there is one.
        dtype: ``fp32``, ``bf16``, or ``auto``: bf16 on a GPU, else fp32.
        precision: ``exact``: linear layers in ``dtype``; ``fp8``: those of the transformer's blocks
            in FP8, an approximation.
        backend: Kernel backends; by default the environment's, else the best for each op.
        reuse: False for the published schedule, for comparison.
        fuse_bias: Add biases of the VAE's residual blocks in other passes (see
            `vae_layers.ResidualBlock`); gives the same frames.
        m_major_scales: With ``fp8``, store scales of 1x128 blocks in the layout that matrix
            products read fastest; gives the same frames.
        team: Ranks that share the work, all of which load the model; by default just one.
        cuda_graphs: On a GPU, replay captured steps instead of launching each kernel.

    Returns:
        The pipeline.

    Raises:
        UserError: The choice is invalid, or weights are missing or damaged.
    """
    source = ModelSource.find(
        preset=preset,
        checkpoint=checkpoint,
        audio_encoder=audio_encoder,
        device=device,
        dtype=dtype,
        precision=precision,
        backend=backend,
        reuse=reuse,
        fuse_bias=fuse_bias,
        m_major_scales=m_major_scales,
        cuda_graphs=cuda_graphs,
    )
    source.require_audio_encoder()
    return source.load_pipeline(source.load_preparer(), team)


def load_preparer(
    *,
    preset: str | None = None,
    checkpoint: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    backend: KernelConfig | None = None,
    reuse: bool = True,
    fuse_bias: bool = False,
) -> Preparer:
    """Load what makes avatars: no transformer, no audio encoder; arguments as in `load_pipeline`.

    Raises:
        UserError: The choice is invalid, or weights are missing or damaged.
    """
    return ModelSource.find(
        preset=preset,
        checkpoint=checkpoint,
        audio_encoder=None,
        device=device,
        dtype=dtype,
        backend=backend,
        reuse=reuse,
        fuse_bias=fuse_bias,
    ).load_preparer()


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where weights come from and how they will run, resolved and checked.

    Loading takes two steps, so that a mistake in an avatar's inputs is reported before the
    transformer, by far the largest part, is read.

    Attributes:
        preset: Name of the preset; for a checkpoint, the one with the same picture size.
        folder: The checkpoint; None for random weights.
        own: What a self-trained checkpoint declares.
        audio_encoder: Folder of wav2vec2.
        device: Device to run on.
        dtype: Dtype of DiT and VAE.
        precision: Precision of the linear layers in the DiT's blocks: ``exact`` or ``fp8``.
        backend: Kernel backends.
        reuse: False for the published schedule.
        fuse_bias: Whether the VAE's residual blocks add their biases in other passes.
        m_major_scales: Whether FP8 scales of neighbouring tokens' blocks are contiguous.
        cuda_graphs: On a GPU, replay captured steps instead of launching each kernel.
        compiled: Whether the transformer runs through torch.compile.
        wrap: Wrapper around the bound ops of DiT and VAE, for example to time them.
    """

    preset: str
    folder: CheckpointFolder | None
    own: OwnModel | None = None
    audio_encoder: Path | None
    device: torch.device
    dtype: torch.dtype
    precision: str
    backend: KernelConfig
    reuse: bool
    fuse_bias: bool = False
    m_major_scales: bool = False
    cuda_graphs: bool = False
    compiled: bool = False
    wrap: Callable[[Ops], Ops] | None = None

    @classmethod
    def find(
        cls,
        *,
        preset: str | None,
        checkpoint: str | Path | None,
        audio_encoder: str | Path | None,
        device: str,
        dtype: str,
        backend: KernelConfig | None,
        reuse: bool,
        fuse_bias: bool = False,
        m_major_scales: bool = False,
        precision: str = "exact",
        cuda_graphs: bool = False,
    ) -> Self:
        """Resolve the arguments of `load_pipeline`.

        Raises:
            UserError: The choice is invalid.
        """
        if preset and checkpoint:
            raise UserError("--preset and --checkpoint: give one of them, not both")
        if checkpoint is None and audio_encoder is not None:
            raise UserError(
                f"--audio-encoder {audio_encoder}: goes with --checkpoint; "
                "a preset has an encoder of its own"
            )
        if precision not in PRECISIONS:
            raise UserError(f"--precision {precision}: unknown; use {' or '.join(PRECISIONS)}")
        if precision == "fp8" and not reuse:
            raise UserError("--precision fp8: the published schedule (--no-reuse) has no FP8")
        if fuse_bias and not reuse:
            raise UserError(
                "--fuse-bias: the published schedule (--no-reuse) adds each bias where it stands; "
                "leave one of them out"
            )
        if m_major_scales and precision != "fp8":
            raise UserError("--m-major-scales: only FP8 has scales; use --precision fp8 as well")
        if cuda_graphs and not reuse:
            raise UserError(
                "--cuda-graphs: the published schedule (--no-reuse) makes new constants in every "
                "step, which no graph can hold; leave one of them out"
            )
        where = resolve_device(device)
        default = DEFAULT_PRESET if checkpoint is None else _PUBLISHED_PRESET
        name = get_preset(preset or default).name
        if checkpoint is None:
            checkpoint = bundled_weights(name)
        folder = None if checkpoint is None else CheckpointFolder(checkpoint)
        encoder = None if audio_encoder is None else Path(audio_encoder)
        if encoder is None and folder is not None:
            encoder = folder.audio_encoder
        return cls(
            preset=name,
            folder=folder,
            own=None if folder is None else folder.own,
            audio_encoder=encoder,
            device=where,
            dtype=resolve_dtype(dtype, where),
            precision=precision,
            backend=KernelConfig.from_sources() if backend is None else backend,
            reuse=reuse,
            fuse_bias=fuse_bias,
            m_major_scales=m_major_scales,
            cuda_graphs=cuda_graphs,
        )

    @property
    def spares_memory(self) -> bool:
        """Whether weights needed only for a new avatar stay on the host: with FP8 on a GPU."""
        return self.precision == "fp8" and self.device.type == "cuda"

    def require_audio_encoder(self) -> None:
        """Check that there is an audio encoder, which generating needs.

        Raises:
            UserError: A checkpoint lacks one, and there is no ``--audio-encoder``.
        """
        if self.folder is not None and self.audio_encoder is None:
            raise UserError(
                f"{self.folder.path}: needs --audio-encoder DIR as well, "
                "the folder of wav2vec2-base"
            )

    def load_preparer(self) -> Preparer:
        """Load the VAE, and check the names, shapes and dtypes of the transformer's weights.

        Raises:
            UserError: Weights are missing or damaged.
        """
        begin = time.perf_counter()
        preset, folder = get_preset(self.preset), self.folder
        config = preset.dit
        if folder is not None:
            config = folder.dit_config()
            dit = self._build_dit(config)
            with open_weights(folder.dit) as files:
                check_module(dit, files, key_map=dit.key_map())
        channels = 4 * preset.vae.dim  # of the single wide head of the middle attention
        ops = self._bind({"H": 1, "d": channels}, main=config.dims)
        with torch.device("meta"):
            shape = preset.vae if folder is None else folder.vae_config()
            vae = VAE(shape, ops, reuse=self.reuse, fuse_bias=self.fuse_bias)
        rounded = self._fill(vae, None if folder is None else folder.vae, None)
        vae.prepare()
        return Preparer(
            config=config,
            vae=vae,
            ops=ops,
            size=preset.size if self.own is None else self.own.size,
            checkpoint=folder,
            rounded=rounded,
            own=self.own,
            load_seconds=time.perf_counter() - begin,
        )

    def load_pipeline(self, preparer: Preparer, team: Team | None = None) -> Pipeline:
        """Load transformer and, on rank 0, audio encoder to go with the VAE of ``preparer``.

        Args:
            preparer: From `load_preparer`.
            team: Ranks that share the work; by default just one.

        Raises:
            UserError: Weights are missing or damaged, the audio encoder does not fit, or the work
                cannot be shared as requested.
        """
        begin = time.perf_counter()
        team = Team() if team is None else team
        if team.size > 1 and not self.reuse:
            raise UserError("--no-reuse: the published schedule runs on one rank; use --nproc 1")
        encoder = self._load_audio_encoder() if team.leads else None
        encoder_done = time.perf_counter()
        dit_config = preparer.config
        if self.folder is not None:
            shape = team.agree([encoder.layers, encoder.width] if encoder else [0, 0])
            dit_config = self.folder.dit_config(*shape)
        dit = self._build_dit(dit_config, team)
        host = dit.avatar_parameters() if self.spares_memory else frozenset()
        weights = None if self.folder is None else self.folder.dit
        rounded = self._fill(dit, weights, dit.key_map(), host)
        give_back_freed_memory()
        return Pipeline(
            dit=dit,
            audio_encoder=encoder,
            preparer=preparer,
            team=team,
            cuda_graphs=self.cuda_graphs,
            compiled=self.compiled,
            rounded=rounded,
            load_times=LoadTimes(
                dit=time.perf_counter() - encoder_done,
                vae=preparer.load_seconds,
                audio_encoder=encoder_done - begin,
            ),
        )

    def _load_audio_encoder(self) -> AudioEncoder:
        if self.audio_encoder is not None:
            return AudioEncoder.from_folder(self.audio_encoder, device=self.device)
        config = get_preset(self.preset).audio
        return AudioEncoder.random(config, seed=RANDOM_SEED, device=self.device)

    def _build_dit(self, config: DiTConfig, team: Team | None = None) -> DiT:
        ops = self._bind(config.dims)
        parallel = None
        if team is not None:
            parallel = team.sequence(config, ops, self.device, self.dtype)
        with torch.device("meta"):
            return DiT(
                config,
                ops,
                reuse=self.reuse,
                fp8=self.precision == "fp8",
                m_major_scales=self.m_major_scales,
                parallel=parallel,
            )

    def _bind(self, dims: Mapping[str, int], *, main: Mapping[str, int] | None = None) -> Ops:
        ops = bind_ops(
            self.backend,
            device=self.device,
            dtype=self.dtype,
            differentiable=False,
            main=main,
            **dims,
        )
        return ops if self.wrap is None else self.wrap(ops)

    def _fill(
        self,
        module: nn.Module,
        weights: Path | None,
        key_map: Mapping[str, Slot] | None,
        host: Collection[str] = (),
    ) -> bool:
        """Fill a module; return whether its weights come from FP8."""
        where: Any = {"dtype": self.dtype, "device": self.device, "key_map": key_map, "host": host}
        if weights is None:
            random_module(module, seed=RANDOM_SEED, **where)
            return False
        with open_weights(weights) as files:
            load_module(module, files, **where)
            return files.rounded


def resolve_device(name: str) -> torch.device:
    """Look up a device by name.

    Raises:
        UserError: The name is unknown, or the device is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name}: unknown; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda") or name.startswith("cpu:"):
        raise UserError(f"--device {name}: not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name}: {torch.cuda.device_count()} CUDA devices are usable here; "
            "see 'livetalk doctor', or use --device cpu"
        )
    return device


def use_device(name: str) -> torch.device:
    """Resolve a command's device, and make it the process's current one.

    Libraries, and those of their kernels that look at no tensor, use the current device. A function
    that others call must not change it; a command may.

    Raises:
        UserError: As `resolve_device`.
    """
    device = resolve_device(name)
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Look up a dtype by name; ``auto`` is bf16 on a GPU and fp32 on a CPU.

    Raises:
        UserError: The name is unknown.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    known = DTYPES.get(short_dtype(name))
    if known is None:
        raise UserError(f"--dtype {name}: unknown; use auto, {', '.join(DTYPES)}")
    return known
