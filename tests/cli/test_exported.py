"""The commands take what training exports."""

import json

import numpy as np
import torch
from cli_tools import FAST
from safetensors.torch import save_file

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_model.cli.main import main
from livetalk_model.dit import DiT
from livetalk_model.train.chunks.network import Network
from livetalk_model.train.product.export import export_network
from livetalk_model.weights.checkpoint import CheckpointFolder
from livetalk_model.weights.fill import load_module, open_weights


def test_doctor_and_generate_take_a_student(
    golden, golden_checkpoint, portrait, speech, out, capsys
):
    """One that has learnt nothing makes the frames of the checkpoint that it was begun with."""
    source, student = CheckpointFolder(golden_checkpoint("tiny_a")), out / "student"
    ops = bind_ops(KernelConfig(), device="cpu", dtype=torch.float32, differentiable=True)
    with torch.device("meta"):
        dit = DiT(source.dit_config(12, 768), ops)
    with open_weights(source.dit) as files:
        load_module(dit, files, dtype=torch.float32, device="cpu", key_map=dit.key_map())
    export_network(Network(dit), student)
    (student / source.vae.name).write_bytes(source.vae.read_bytes())
    encoder = ["--audio-encoder", str(golden_checkpoint("w2v_768"))]
    main(["doctor", "--checkpoint", str(student), *encoder, "--json"])
    report = json.loads(capsys.readouterr().out)["checkpoint"]
    states = {part["name"]: part["status"] for part in report["components"]}
    assert [states[name] for name in ("DiT", "VAE", "audio encoder")] == ["found"] * 3
    conditioning = golden("e2e_conditioning")
    text, image = out / "text.safetensors", out / "image.safetensors"
    save_file({"context": conditioning["context"]}, text)
    save_file({"clip_fea": conditioning["clip_fea"]}, image)
    made = []
    for folder in (student, source.path):
        target = out / f"{len(made)}.npy"
        command = ["generate", "--checkpoint", str(folder), *encoder, "--device", "cpu",
                   "--portrait", str(portrait), "--audio", str(speech), "--prompt-embeds",
                   str(text), "--image-embeds", str(image), "--output", str(target)]  # fmt: skip
        assert main([*command, *FAST]) == 0
        made.append(np.load(target))
    assert np.array_equal(*made)
