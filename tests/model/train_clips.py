"""Clips small enough to be trained on in a test."""

from dataclasses import replace
from pathlib import Path

import torch
from encoder_samples import write_encoders
from train_samples import CONFIG, training_ops

from livetalk_model.dit import DiT
from livetalk_model.train.audio.export import export_audio
from livetalk_model.train.chunks.network import Network
from livetalk_model.train.data.clips import Clips, ClipWriter, Index
from livetalk_model.train.data.synthetic import TRUTH, make_clip
from livetalk_model.train.demo import new_audio_network, new_vae
from livetalk_model.train.product.export import export_network, export_vae
from livetalk_model.train.vae.task import fold_statistics
from livetalk_model.weights.fill import random_module


def make_clips(folder: Path, *, size: tuple[int, int] = (32, 32), seconds: float = 2) -> Clips:
    """A folder with one drawn clip of made-up speech."""
    writer = ClipWriter(folder, Index(size=size, truth=TRUTH))
    clip = make_clip(seed=0, split="train", index=0, seconds=seconds, size=size, program=None)
    writer.enter(writer.store("000000.safetensors", clip))
    writer.write_index(complete=True)
    return Clips(folder)


def make_sources(folder: Path, *, seconds: float = 2.5) -> dict[str, Path]:
    """A clip, two chunks long, and what a transformer is trained with, of random weights.

    Option of ``livetalk train`` -> folder.
    """
    clips = make_clips(folder / "clips", seconds=seconds)
    vae = new_vae(0)
    frames = clips.frames(0)[:33].permute(3, 0, 1, 2)[None] / 127.5 - 1
    fold_statistics(vae, vae.encode(frames))
    (folder / "vae").mkdir()
    export_vae(vae, folder / "vae")
    export_audio(new_audio_network(0), folder / "audio")
    return {name: folder / at for name, at in
            (("data", "clips"), ("vae", "vae"), ("audio-encoder", "audio"))}  # fmt: skip


def publish(folder: Path, *, seed: int = 4) -> Path:
    """A folder as published: a transformer, a text and an image encoder, of random weights."""
    config = replace(CONFIG, audio_dim=96, text_dim=32, text_len=24, image_dim=32, image_len=17)
    with torch.device("meta"):
        dit = DiT(config, training_ops())
    random_module(dit, seed=seed, dtype=torch.float32, device="cpu", key_map=dit.key_map())
    folder.mkdir()
    export_network(Network(dit), folder)
    write_encoders(folder)
    return folder
