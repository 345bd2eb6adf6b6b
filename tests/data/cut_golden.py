"""Cut the small golden tensors out of the whole set: ``python tests/data/cut_golden.py REFERENCE``.

REFERENCE is the folder with the golden tensors of the published model. README.md says what is
taken, and what has to stay there.
"""

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

DATA = Path(__file__).resolve().parent
SPECS = [
    "clip_tiny",
    "t5_tiny",
    "tiny_a",
    "tiny_a128",
    "tiny_a128.config",
    "tiny_a.config",
    "tiny_a_sharded.config",
    "tiny_a_sharded.index",
    "tiny_b",
    "tiny_b.config",
    "tiny_b.index",
    "vae_16",
    "vae_96",
    "w2v_768",
    "w2v_768.config",
    "w2v_768.preprocessor_config",
    "w2v_small",
]
DOCUMENTS = {
    "facts.json": "facts.json",
    "spec/w2v_small.config.json": "ckpt_small/w2v_small/config.json",
    "spec/w2v_small.preprocessor_config.json": "ckpt_small/w2v_small/preprocessor_config.json",
} | {f"spec/{name}.json": f"spec/{name}.json" for name in SPECS}


def small_tensors(reference: Path) -> dict[str, dict[str, Tensor]]:
    """Map names of small files to their tensors, cut out of the whole set; values are untouched."""

    def load(name: str) -> dict[str, Tensor]:
        return load_file(reference / "io" / f"{name}.safetensors")

    conditions, misc = load("dit_inputs_shared"), load("misc")
    tiny_a, tiny_a128 = load("dit_out_tiny_a_g1"), load("dit_out_tiny_a128_g1")
    vae_16, vae_96 = load("vae_dim16_64x96"), load("vae_dim96_64x96")
    clip_fea = conditions["clip_fea"]
    steps = ("t1000", "t937.5", "t625", "bf16_emulated_t937.5")
    return {
        "dit_text": {"context": conditions["context"]},
        "dit_image_0": {"clip_fea": clip_fea[:, :128]},  # halves: no file exceeds 1 MiB
        "dit_image_1": {"clip_fea": clip_fea[:, 128:]},
        "dit_inputs_g1": load("dit_inputs_g1"),
        "dit_out_tiny_a_g1": {key: tiny_a[key] for key in (*steps, "two_person_t937.5")},
        "dit_out_tiny_a128_g1": {key: tiny_a128[key] for key in steps},
        "vae_dim16": {
            "video_u8": vae_16["video_u8"][:5],
            "encode_1": vae_16["encode_1"],
            "encode_5": vae_16["encode_5"],
            "z3": vae_16["z9"][:, :3],
            "decode_3_unclamped": vae_16["decode_9_unclamped"][:, :, :9],
        },
        "vae_dim96": {key: vae_96[key] for key in ("encode_5", "decode_2")},
        "color": {
            key: misc[f"color.{key}"]
            for key in ("source", "reference", "out_strength0.3", "out_strength1.0")
        },
        "text": {key: misc[f"t5.{key}"] for key in ("ids", "mask", "out_padded")},
        "rope": {
            "q": misc["rope.q_hd32"],
            "q_out_3x4x6": misc["rope.q_out_3x4x6_hd32"],
            "1d.x": misc["rope1d.x"],
            "1d.pos": misc["rope1d.pos"],
            "1d.out": misc["rope1d.out"],
            "sinusoid_256": misc["time.sinusoid_256"],
        },
    }


def main(reference: Path) -> None:
    """Write all small files next to this one."""
    (DATA / "spec").mkdir(exist_ok=True)
    for name, source in DOCUMENTS.items():
        shutil.copyfile(reference / source, DATA / name)
    for name, tensors in small_tensors(reference).items():
        contiguous = {key: tensor.contiguous() for key, tensor in tensors.items()}
        save_file(contiguous, DATA / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
