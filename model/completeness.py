"""Checks whether a checkpoint folder is complete, from headers alone; no weights are read."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import check_folder, find, is_file, is_folder
from livetalk_kernels.ops import Ops
from livetalk_kernels.precision import dtype_name

from .config import AudioEncoderConfig, DiTConfig
from .dit import DiT
from .encoders.audio import wav2vec2_on_meta
from .encoders.image import split_tensors, vision_on_meta
from .encoders.text import check_tokenizer, umt5_on_meta
from .own import OwnModel
from .vae import VAE
from .weights.checkpoint import (
    DIT_CONFIG,
    IMAGE_ENCODER_FILE,
    SAFE_VAE_FILE,
    TEXT_ENCODER_FILE,
    TOKENIZER_FOLDER,
    VAE_FILE,
    CheckpointFolder,
    read_dit_config,
    read_vae_config,
)
from .weights.fill import ROUNDED, check_module
from .weights.tensor_files import TensorFiles, TensorSpec, open_weights

Status = Literal["found", "missing", "broken", "not given", "not needed"]

_TOKENIZER_FILES = ("tokenizer.json", "spiece.model")


@dataclass(frozen=True, kw_only=True)
class Component:
    """One row of the report.

    Attributes:
        name: Part of the model.
        needed_for: Command that needs it.
        status: ``found``: its headers are intact and fit the model; ``not needed``: the model was
            trained without it.
        files: Its existing files.
        bytes: Their total size.
        tensors: Number of tensors.
        parameters: Number of values in them.
        dtypes: Dtypes, most frequent first.
        problem: What is wrong and what to do; else empty. A part that is ``found`` may also have a
            problem, one that makes its results approximate.
    """

    name: str
    needed_for: str
    status: Status
    files: tuple[Path, ...] = ()
    bytes: int = 0
    tensors: int = 0
    parameters: int = 0
    dtypes: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class CheckpointReport:
    """The result of `inspect_checkpoint`.

    Attributes:
        components: One row per part.
    """

    components: tuple[Component, ...]

    @property
    def complete(self) -> bool:
        """Whether everything that ``generate`` needs is there, and nothing is broken."""
        return not any(
            row.status == "broken" or (row.status == "missing" and row.needed_for == "generate")
            for row in self.components
        )

    @property
    def can_prepare(self) -> bool:
        """Whether ``prepare`` works without precomputed embeddings."""
        return self.complete and not any(row.status == "missing" for row in self.components)


def inspect_checkpoint(
    folder: str | Path, audio_encoder: str | Path | None = None
) -> CheckpointReport:
    """Check a folder in the published layout, and that its parts fit together.

    Args:
        folder: The checkpoint.
        audio_encoder: Folder of wav2vec2; by default the checkpoint's own is checked, if any.

    Returns:
        The report; problems with the weights are rows in it.

    Raises:
        UserError: One of the folders does not exist.
    """
    checkpoint = CheckpointFolder(folder)
    path, encoder = checkpoint.path, checkpoint.audio_encoder
    if audio_encoder is not None:
        encoder = check_folder(audio_encoder, "give the folder of wav2vec2")
    audio, audio_config = _inspect_audio_encoder(encoder)
    dit, dit_config = _inspect_dit(path, audio_config)
    own, dit = _inspect_own(checkpoint, dit)
    width, tokens, text_width = (
        (dit_config.image_dim, dit_config.image_len, dit_config.text_dim)
        if dit_config
        else (None, None, None)
    )
    vae = path / (SAFE_VAE_FILE if is_file(path / SAFE_VAE_FILE) else VAE_FILE)
    report = CheckpointReport(
        components=(
            dit,
            _inspect("VAE", "generate", vae, _check_vae),
            audio,
            _inspect(
                "text encoder",
                "prepare",
                path / TEXT_ENCODER_FILE,
                lambda files: _check_text(files, text_width),
            ),
            _inspect_tokenizer(path / TOKENIZER_FOLDER),
            _inspect(
                "image encoder",
                "prepare",
                path / IMAGE_ENCODER_FILE,
                lambda files: _check_image(files, tokens, width),
            ),
        )
    )
    return report if own is None else _without_encoders(report, own)


def _inspect_own(checkpoint: CheckpointFolder, dit: Component) -> tuple[OwnModel | None, Component]:
    """Read what a self-trained model declares, and return the DiT's row with any faults."""
    if dit.status != "found":
        return None, dit
    try:
        return checkpoint.own, dit
    except UserError as error:
        return None, dataclasses.replace(dit, status="broken", problem=str(error))


def _without_encoders(report: CheckpointReport, own: OwnModel) -> CheckpointReport:
    """Don't report encoders as missing that the model does not use."""
    spared = {"text encoder", "tokenizer"} if own.prompt_zeros else set()
    spared |= {"image encoder"} if own.image_zeros else set()
    return CheckpointReport(
        components=tuple(
            dataclasses.replace(row, status="not needed", problem="")
            if row.name in spared and row.status == "missing"
            else row
            for row in report.components
        )
    )


def _inspect(
    name: str,
    needed_for: str,
    source: Path,
    check: Callable[[TensorFiles], None],
    candidates: Sequence[Path] = (),
) -> Component:
    """Build the row of one component.

    Args:
        name: Part of the model.
        needed_for: Command that needs it.
        source: File or folder to open.
        check: Raises a UserError if the tensors are not those of this component.
        candidates: Possible files, if ``source`` is a folder.
    """
    # Broken links and pipes are opened too, which reports what they are.
    present = tuple(f for f in candidates or (source,) if find(f).kind not in ("missing", "folder"))
    if not present:
        problem = f"{source}: missing; download it"
        if is_folder(source):
            problem = f"{source}: no weights of the {name} in it; download them"
        return Component(name=name, needed_for=needed_for, status="missing", problem=problem)
    size = sum(find(file).bytes for file in present)
    row = Component(name=name, needed_for=needed_for, status="found", files=present, bytes=size)
    try:
        with open_weights(source) as files:
            row = dataclasses.replace(row, **_count(files.shapes.values()))
            check(files)
            if files.rounded:
                row = dataclasses.replace(row, problem=f"{files.name}: {ROUNDED}")
    except UserError as error:
        return dataclasses.replace(row, status="broken", problem=str(error))
    return row


def _count(specs: Collection[TensorSpec]) -> dict[str, Any]:
    dtypes = Counter(dtype_name(dtype) for _, dtype in specs)
    return {
        "tensors": len(specs),
        "parameters": sum(math.prod(shape) for shape, _ in specs),
        "dtypes": tuple(dtype for dtype, _ in dtypes.most_common()),
    }


def _inspect_dit(
    folder: Path, audio: AudioEncoderConfig | None
) -> tuple[Component, DiTConfig | None]:
    """Build the row of the DiT; return it with the configuration, if that could be determined."""
    configs: list[DiTConfig] = []

    def check(files: TensorFiles) -> None:
        sizes = (audio.layers, audio.width) if audio else (None, None)
        config = read_dit_config(folder / DIT_CONFIG, files, *sizes)
        configs.append(config)
        with torch.device("meta"):
            dit = DiT(config, _ops())
        check_module(dit, files, key_map=dit.key_map())

    weights = sorted(folder.glob("diffusion_pytorch_model*"))
    row = _inspect("DiT", "generate", folder, check, weights or [folder])
    return row, configs[0] if configs else None


def _check_vae(files: TensorFiles) -> None:
    config = read_vae_config(files)
    with torch.device("meta"):
        vae = VAE(config, _ops())
    check_module(vae, files)


def _ops() -> Ops:
    """Bind ops for modules that are built only for their parameter names."""
    return bind_ops(KernelConfig(), device="cpu", dtype=torch.float32)


def _inspect_audio_encoder(
    folder: Path | None,
) -> tuple[Component, AudioEncoderConfig | None]:
    """Build the row of the audio encoder; return it with the configuration, if readable."""
    name, needed_for = "audio encoder", "generate"
    if folder is None:
        problem = "not checked; name its folder with --audio-encoder DIR"
        row = Component(name=name, needed_for=needed_for, status="not given", problem=problem)
        return row, None
    configs: list[AudioEncoderConfig] = []

    def check(files: TensorFiles) -> None:
        config = AudioEncoderConfig.from_json(folder / "config.json")
        configs.append(config)
        network, key_map, ignore = wav2vec2_on_meta(folder, files)
        check_module(network, files, key_map=key_map, ignore=ignore)

    weights = [*sorted(folder.glob("model*.safetensors*")), folder / "pytorch_model.bin"]
    row = _inspect(name, needed_for, folder, check, weights)
    return row, configs[0] if configs else None


def _inspect_tokenizer(folder: Path) -> Component:
    """Build the row of the tokenizer, whose contents are checked on use."""
    row = Component(name="tokenizer", needed_for="prepare", status="found")
    if find(folder).kind == "missing":
        problem = f"{folder}: missing; download it"
        return dataclasses.replace(row, status="missing", problem=problem)
    try:
        check_tokenizer(folder)
    except UserError as error:
        return dataclasses.replace(row, status="broken", problem=str(error))
    files = tuple(sorted(file for file in folder.iterdir() if is_file(file)))
    row = dataclasses.replace(row, files=files, bytes=sum(find(file).bytes for file in files))
    if not any(file.name in _TOKENIZER_FILES and find(file).bytes for file in files):
        problem = f"{folder}: neither of {', '.join(_TOKENIZER_FILES)}; download the folder again"
        return dataclasses.replace(row, status="broken", problem=problem)
    return row


def _check_text(files: TensorFiles, width: int | None) -> None:
    network, key_map = umt5_on_meta(files)
    check_module(network, files, key_map=key_map)
    _check_size(files, "token_embedding.weight", (None, width))


def _check_image(files: TensorFiles, tokens: int | None, width: int | None) -> None:
    # The number of heads does not affect any shape.
    tower, key_map, ignore = vision_on_meta(files, num_heads=1)
    check_module(tower, split_tensors(files), key_map=key_map, ignore=ignore)
    _check_size(files, "visual.pos_embedding", (1, tokens, width))


def _check_size(files: TensorFiles, key: str, wanted: tuple[int | None, ...]) -> None:
    """Check sizes of a tensor against what the DiT expects.

    Raises:
        UserError: They differ.
    """
    shape = files.shapes[key][0]
    if any(want not in (None, have) for want, have in zip(wanted, shape, strict=True)):
        raise UserError(
            f"{files.name}: {key} is {list(shape)}, which this DiT does not take; "
            "use the encoder that belongs to it"
        )
