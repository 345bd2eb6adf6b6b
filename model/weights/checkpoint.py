"""The published folder layout: the location of each file, and the configuration that weights imply.

``DIR/config.json``, ``DIR/diffusion_pytorch_model*.safetensors`` (DiT, sharded or not),
``DIR/Wan2.1_VAE.pth``, ``DIR/models_t5_umt5-xxl-enc-bf16.pth`` with its tokenizer in
``DIR/google/umt5-xxl``, ``DIR/models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth``. The audio
encoder is in a separate folder; a self-trained model has it in ``DIR/audio_encoder``, and its VAE
may be a safetensors file.
"""

import dataclasses
from pathlib import Path

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import check_folder, find, is_folder

from ..config import DiTConfig, VAEConfig, read_config
from ..own import OwnModel
from .tensor_files import TensorFiles, open_weights

DIT_CONFIG = "config.json"
VAE_FILE = "Wan2.1_VAE.pth"
SAFE_VAE_FILE = "Wan2.1_VAE.safetensors"
AUDIO_FOLDER = "audio_encoder"
TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER_FOLDER = "google/umt5-xxl"
IMAGE_ENCODER_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"

_AUDIO_KEY = "audio_proj.proj1.weight"
_VAE_KEY = "encoder.conv1.weight"
_AUDIO_FIELDS = ("audio_layers", "audio_dim")


class CheckpointFolder:
    """A folder of published weights; its files are accessed on demand.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: str | Path) -> None:
        """Check that the folder exists.

        Raises:
            UserError: It does not, or is the root of a download cache.
        """
        self.path = check_folder(path, f"give the one with {DIT_CONFIG} in it")

    @property
    def dit(self) -> Path:
        """Argument of ``open_weights`` for the DiT: the folder, with one or more files in it."""
        return self.path

    @property
    def vae(self) -> Path:
        """File of the VAE's weights."""
        safe = self.path / SAFE_VAE_FILE
        if find(safe).kind != "missing" and find(self.path / VAE_FILE).kind == "missing":
            return safe
        return self._require(VAE_FILE, "download it")

    @property
    def audio_encoder(self) -> Path | None:
        """Folder of the audio encoder that belongs to it; None without one."""
        folder = self.path / AUDIO_FOLDER
        return folder if is_folder(folder) else None

    @property
    def own(self) -> OwnModel | None:
        """What a self-trained model declares about its use; None for a published one.

        Raises:
            UserError: See `OwnModel.read`.
        """
        return OwnModel.read(self.path / DIT_CONFIG)

    @property
    def text_encoder(self) -> Path:
        """File of the text encoder's weights."""
        return self._require(TEXT_ENCODER_FILE, "download it, or give --prompt-embeds FILE")

    @property
    def tokenizer(self) -> Path:
        """Folder of the text encoder's tokenizer."""
        return self._require(TOKENIZER_FOLDER, "download it, or give --prompt-embeds FILE")

    @property
    def image_encoder(self) -> Path:
        """File of the image encoder's weights."""
        return self._require(IMAGE_ENCODER_FILE, "download it, or give --image-embeds FILE")

    def dit_config(
        self, audio_layers: int | None = None, audio_dim: int | None = None
    ) -> DiTConfig:
        """Determine the DiT's configuration from ``config.json`` and the shapes of its weights.

        ``config.json`` does not say how many layers of which width the audio projection takes, and
        its weights only reveal their product.

        Args:
            audio_layers: Layers of the audio encoder that will be used.
            audio_dim: Its width. By default 12 x 768 if that fits the weights, else 12 layers or,
                if 12 does not divide them, one.

        Raises:
            UserError: A file is missing or damaged, or the audio encoder does not fit.
        """
        with open_weights(self.dit) as files:
            return read_dit_config(self.path / DIT_CONFIG, files, audio_layers, audio_dim)

    def vae_config(self) -> VAEConfig:
        """Determine the VAE's configuration from the shapes of its weights.

        Raises:
            UserError: The file is missing, damaged, or not of this VAE.
        """
        with open_weights(self.vae) as files:
            return read_vae_config(files)

    def _require(self, name: str, remedy: str) -> Path:
        path = self.path / name
        found = find(path)
        if found.kind == "missing":
            raise UserError(f"{path}: missing; {remedy}")
        if found.problem:
            raise UserError(f"{path}: {found.problem}")
        return path


def read_dit_config(
    path: Path,
    files: TensorFiles,
    audio_layers: int | None = None,
    audio_dim: int | None = None,
) -> DiTConfig:
    """Do the work of ``CheckpointFolder.dit_config``; ``files`` are the open weights."""
    config = DiTConfig.from_json(path)
    if any(field in read_config(path) for field in _AUDIO_FIELDS) or _AUDIO_KEY not in files.shapes:
        features = config.audio_features
    else:
        columns = files.shapes[_AUDIO_KEY][0][-1]
        features, rest = divmod(columns, config.audio_window)
        if rest:
            raise UserError(
                f"{files.path_of(_AUDIO_KEY)}: {_AUDIO_KEY} takes {columns} numbers, which is not "
                f"a multiple of {config.audio_window} frames; "
                "use the checkpoint that belongs to config.json"
            )
    if audio_layers is not None and audio_dim is not None:
        if audio_layers * audio_dim != features:
            raise UserError(
                f"{path.parent}: the DiT takes {features} audio numbers a frame, the audio encoder "
                f"gives {audio_layers} x {audio_dim} = {audio_layers * audio_dim}; "
                "give the encoder that belongs to it with --audio-encoder DIR"
            )
        return dataclasses.replace(config, audio_layers=audio_layers, audio_dim=audio_dim)
    if features == config.audio_features:
        return config
    # Only the audio encoder knows how the product splits.
    layers = config.audio_layers if features % config.audio_layers == 0 else 1
    return dataclasses.replace(config, audio_layers=layers, audio_dim=features // layers)


def read_vae_config(files: TensorFiles) -> VAEConfig:
    """Do the work of ``CheckpointFolder.vae_config``; ``files`` are the open weights."""
    shape = files.shapes.get(_VAE_KEY, ((), None))[0]
    if len(shape) != len("OITHW"):
        raise UserError(
            f"{files.name}: no convolution {_VAE_KEY}, so not the Wan2.1 VAE; download {VAE_FILE}"
        )
    return VAEConfig(dim=shape[0])
