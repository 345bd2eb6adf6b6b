"""Text and image encoders of random weights, small enough for a test, in the published layout."""

from pathlib import Path

import torch

from livetalk_model.weights.checkpoint import (
    IMAGE_ENCODER_FILE,
    TEXT_ENCODER_FILE,
    TOKENIZER_FOLDER,
)

WORDS = ("a", "person", "is", "talking", "to", "the", "camera")


def umt5_weights(dim=32, inner=24, heads=3, ffn=48, layers=2, vocab=40) -> dict[str, torch.Tensor]:
    """Random weights with the published names."""
    shapes = {"token_embedding.weight": (vocab, dim), "norm.weight": (dim,)}
    for layer in range(layers):
        block = f"blocks.{layer}."
        shapes |= {block + f"norm{i}.weight": (dim,) for i in (1, 2)}
        shapes |= {block + f"attn.{name}.weight": (inner, dim) for name in "qkv"}
        shapes |= {
            block + "attn.o.weight": (dim, inner),
            block + "ffn.gate.0.weight": (ffn, dim),
            block + "ffn.fc1.weight": (ffn, dim),
            block + "ffn.fc2.weight": (dim, ffn),
            block + "pos_embedding.embedding.weight": (32, heads),
        }
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(s, generator=generator) / s[-1] ** 0.5 for key, s in shapes.items()}


def write_tokenizer(folder: Path) -> Path:
    """A word tokenizer that ends with </s>, as T5's do."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def clip_weights(dim=24, ffn=40, blocks=3, grid=4, patch=14) -> dict[str, torch.Tensor]:
    """Random weights with the published names, with a text tower to be ignored."""
    shapes = {
        "log_scale": (),
        "textual.token_embedding.weight": (10, 8),
        "visual.cls_embedding": (1, 1, dim),
        "visual.pos_embedding": (1, grid * grid + 1, dim),
        "visual.head": (dim, 8),
        "visual.patch_embedding.weight": (dim, 3, patch, patch),
    }
    norms = ["pre_norm", "post_norm"]
    for block in range(blocks):
        key = f"transformer.{block}."
        norms += [key + "norm1", key + "norm2"]
        for name, rows, columns in (
            ("attn.to_qkv", 3 * dim, dim),
            ("attn.proj", dim, dim),
            ("mlp.0", ffn, dim),
            ("mlp.2", dim, ffn),
        ):
            shapes |= {
                f"visual.{key}{name}.weight": (rows, columns),
                f"visual.{key}{name}.bias": (rows,),
            }
    for norm in norms:
        shapes |= {f"visual.{norm}.weight": (dim,), f"visual.{norm}.bias": (dim,)}
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(shape, generator=generator) * 0.2 for key, shape in shapes.items()}


def write_encoders(folder: Path) -> None:
    """Both, where a published checkpoint has them; 32 channels each, 17 image tokens."""
    torch.save(umt5_weights(), folder / TEXT_ENCODER_FILE)
    write_tokenizer(folder / TOKENIZER_FOLDER)
    torch.save(clip_weights(dim=32), folder / IMAGE_ENCODER_FILE)
