"""Prompt to text embedding: the umT5 encoder of the published checkpoint, or a random substitute.

umT5: Chung et al., "UniMax", 2023; T5: Raffel et al., 2020. Attention is not scaled by 1/sqrt(d)
and every layer has its own relative position bias.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from livetalk_kernels.errors import UserError
from livetalk_kernels.inputs import check_folder, check_input

from ..linear import take_over_linears
from ..weights.fill import Slot, TensorFiles, load_module, open_weights

if TYPE_CHECKING:
    from transformers import UMT5EncoderModel

MAX_TOKENS = 512
_TOKENIZER_FILES = ("*.json", "*.model")
_UNCOMMON = "\u0de9 \u2603"  # in no vocabulary: some tokenizers fail only on these
_BLOCK_KEYS = {
    "norm1.weight": "layer.0.layer_norm.weight",
    "attn.q.weight": "layer.0.SelfAttention.q.weight",
    "attn.k.weight": "layer.0.SelfAttention.k.weight",
    "attn.v.weight": "layer.0.SelfAttention.v.weight",
    "attn.o.weight": "layer.0.SelfAttention.o.weight",
    "pos_embedding.embedding.weight": "layer.0.SelfAttention.relative_attention_bias.weight",
    "norm2.weight": "layer.1.layer_norm.weight",
    "ffn.gate.0.weight": "layer.1.DenseReluDense.wi_0.weight",
    "ffn.fc1.weight": "layer.1.DenseReluDense.wi_1.weight",
    "ffn.fc2.weight": "layer.1.DenseReluDense.wo.weight",
}


def clean_prompt(text: str) -> str:
    """Repair mojibake, resolve HTML entities (twice, as published), collapse white space."""
    if not (text.isascii() and text.isprintable() and "&" not in text):  # else nothing to repair
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


class TextEncoder:
    """umT5 encoder with its tokenizer.

    Attributes:
        width: Channels per row (4096 for umT5-XXL).
        device: Device of the network.
        dtype: Dtype of the computation.
    """

    def __init__(self, network: UMT5EncoderModel, tokenizer: Any) -> None:
        """Take a ready ``transformers.UMT5EncoderModel`` and tokenizer; see `from_checkpoint`.

        Args:
            network: The encoder with its weights.
            tokenizer: A callable like transformers' tokenizers: text -> ``input_ids``.
        """
        self._network = network.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        weight = next(network.parameters())
        self.width: int = weight.shape[1]
        self.device, self.dtype = weight.device, weight.dtype

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        tokenizer_dir: str | Path,
        *,
        device: torch.device | str,
        dtype: torch.dtype = torch.bfloat16,
    ) -> Self:
        """Load the published ``models_t5_umt5-xxl-enc-bf16.pth``; no network is used.

        Args:
            path: The weights; sizes are read from their shapes.
            tokenizer_dir: Folder with the tokenizer's files (published: ``google/umt5-xxl``).
            device: Device to load it to.
            dtype: Dtype to convert the weights to; published: bfloat16.

        Raises:
            UserError: A file is missing, damaged, or does not fit; the message names it.
        """
        tokenizer = load_tokenizer(tokenizer_dir)
        return cls(load_umt5(path, device=device, dtype=dtype), tokenizer)

    def encode(self, prompt: str) -> Tensor:
        """Embed a prompt.

        Args:
            prompt: Any text; truncated to 512 tokens.

        Returns:
            [rows, width] in the encoder's dtype: one row per token, including the end token,
            without padding (the DiT pads with zeros).
        """
        tokens = self._tokenizer(clean_prompt(prompt), truncation=True, max_length=MAX_TOKENS)
        return self.embed_ids(torch.tensor(tokens["input_ids"]))

    def embed_ids(self, ids_L: Tensor) -> Tensor:
        """Embed token ids [rows], int64, as [rows, width].

        Without padding there is nothing to mask, so the rows equal those of a padded and masked
        batch.
        """
        with torch.no_grad():
            return self._network(ids_L[None].to(self.device)).last_hidden_state[0]


class RandomTextEncoder:
    """Substitute for presets without a checkpoint: untrained random rows per byte and position.

    row_i = byte_table[byte_i] + position_table[i], of unit variance, the same in every run.

    Attributes:
        width: Channels per row.
    """

    def __init__(
        self, width: int = 4096, *, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        """Draw the tables on the CPU, so that every device gets the same ones."""
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(256 + MAX_TOKENS, width, generator=generator) * 0.5**0.5
        self._byte_table, self._position_table = table.to(device).split((256, MAX_TOKENS))
        self.width = width

    def encode(self, prompt: str) -> Tensor:
        """Embed a prompt: [rows, width] float32, one row per UTF-8 byte and one for the end."""
        ids = [*clean_prompt(prompt).encode()[: MAX_TOKENS - 1], 0]
        return self._byte_table[ids] + self._position_table[: len(ids)]


def load_tokenizer(folder: str | Path) -> Any:
    """Load the tokenizer from a local folder.

    Code in the folder is never run, and the user is not prompted to allow it.

    Raises:
        UserError: The folder does not exist, or its files are unusable.
    """
    folder = check_tokenizer(folder)  # transformers would look for a missing folder on the hub
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        tokenizer(_UNCOMMON)
    except Exception as error:  # anything from a missing file to a parser's panic
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder}: not a usable tokenizer ({reason}); download google/umt5-xxl again"
        ) from None
    return tokenizer


def check_tokenizer(folder: str | Path) -> Path:
    """Check that a folder exists, and that its entries are regular files.

    Raises:
        UserError: It does not; or one is a Git LFS pointer, a broken link, a pipe, or empty.
    """
    folder = check_folder(folder, "copy google/umt5-xxl of the checkpoint there")
    for file in (file for name in _TOKENIZER_FILES for file in sorted(folder.glob(name))):
        check_input(file, "tokenizer")
    return folder


def load_umt5(
    path: str | Path, *, device: torch.device | str, dtype: torch.dtype
) -> UMT5EncoderModel:
    """Load the published umT5 encoder weights into ``transformers.UMT5EncoderModel``.

    Args:
        path: ``.pth`` or safetensors with the published names (``blocks.0.attn.q.weight``, ...).
        device: Device to load it to.
        dtype: Dtype to convert the weights to.

    Raises:
        UserError: The file is missing, damaged, or does not fit.
    """
    with open_weights(path) as files:
        network, key_map = umt5_on_meta(files)
        load_module(network, files, dtype=dtype, device=device, key_map=key_map)
    return network


def umt5_on_meta(files: TensorFiles) -> tuple[UMT5EncoderModel, dict[str, Slot]]:
    """Build the encoder that a checkpoint's shapes describe, without weights, and its key map.

    Raises:
        UserError: A tensor that determines a size is missing.
    """
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(attn_implementation="eager", **_umt5_sizes(files))
    with torch.device("meta"):
        network = UMT5EncoderModel(config)
    take_over_linears(network)
    # One embedding module under both of its names, so that it is loaded once.
    network.set_input_embeddings(network.shared)
    key_map = {
        "token_embedding.weight": Slot("shared.weight"),
        "norm.weight": Slot("encoder.final_layer_norm.weight"),
    }
    for layer in range(config.num_layers):
        for key, name in _BLOCK_KEYS.items():
            key_map[f"blocks.{layer}.{key}"] = Slot(f"encoder.block.{layer}.{name}")
    return network, key_map


def _umt5_sizes(files: TensorFiles) -> dict[str, int]:
    """Derive the encoder's sizes from the shapes of its first block."""

    def matrix(key: str) -> tuple[int, int]:
        shape = files.shapes[key][0] if key in files.shapes else ()
        if len(shape) != 2 or 0 in shape:
            raise UserError(
                f"{files.name}: no matrix {key}; give the published umT5 encoder weights"
            )
        return shape[0], shape[1]

    vocab_size, d_model = matrix("token_embedding.weight")
    buckets, heads = matrix("blocks.0.pos_embedding.embedding.weight")
    blocks = {key.split(".")[1] for key in files.shapes if key.startswith("blocks.")}
    return {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_kv": matrix("blocks.0.attn.q.weight")[0] // heads,
        "d_ff": matrix("blocks.0.ffn.gate.0.weight")[0],
        "num_layers": len(blocks),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
    }
