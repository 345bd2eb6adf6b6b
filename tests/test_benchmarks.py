"""The benchmark scripts run; what they measure is not judged here."""

import json
import subprocess
import sys
from pathlib import Path

import av
import compiled_vae
import growth
import numpy as np
import pytest
import torch
from PIL import Image

from livetalk_kernels import KernelConfig
from livetalk_model.cli.main import main
from livetalk_model.loading import load_preparer

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def run(folder: Path, script: str, *arguments: str) -> None:
    """Run a script in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("compare", ["reuse", "backends"])
def test_variants_of_a_chunk_and_their_picture(compare: str, tmp_path: Path) -> None:
    # One thread: two that share a core wait for each other, and the test takes thrice as long.
    arguments = ("--compare", compare, "--preset", "tiny", "--rounds", "1", "--threads", "1")
    arguments += ("--dtype", "fp32")  # a CPU without bf16 products takes minutes for the other
    arguments += ("--tier", "avx2", "--no-compile")  # compilers, too
    run(tmp_path, "chunk.py", *arguments, "--output", "chunk.json")
    result = json.loads((tmp_path / "chunk.json").read_text())
    assert len(result["rounds"]) == 1
    for row in result["summary"].values():
        assert row["chunk"] > 0 and row["dit_gflops"] > 0
    assert result["machine"].keys() >= {"cpu", "torch", "commit", "date", "preset"}
    assert (result["machine"]["kernels"], result["machine"]["capability"]) == ("avx2", "AVX2")
    run(tmp_path, "plot.py", "chunk", "chunk.json", "chunk.png")
    assert (tmp_path / "chunk.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["chunk.json", "chunk.png"]


def test_a_compiled_vae_takes_one_graph_for_all_pieces_but_the_first() -> None:
    """Which makes the same frames and latents, on whatever history."""
    plain = load_preparer(
        preset="tiny", device="cpu", backend=KernelConfig.parse(("reference",)), reuse=False
    ).vae
    latents = torch.randn(1, 16, 4, 2, 2)
    video = torch.rand(1, 3, 9, 16, 16)
    with torch.inference_mode():
        frames, coded = plain.decode(latents), plain.encode(video)
        graphs = []

        def compiler(graph: torch.fx.GraphModule, _: object) -> object:
            graphs.append(graph)
            return graph.forward

        compiled_vae.compile_vae(plain, compiler=compiler)
        assert torch.equal(plain.decode(latents), frames)
        assert torch.equal(plain.encode(video), coded)
    assert len(graphs) == 2


def test_growth_of_a_chunk(tmp_path: Path) -> None:
    sizes = ("--size", "32x32", "--size", "64x64", "--chunks", "1", "--threads", "1")
    run(tmp_path, "growth.py", "--preset", "tiny", *sizes, "--output", "growth.json")
    result = json.loads((tmp_path / "growth.json").read_text())
    assert [row["tokens"] for row in result["rows"]] == [36, 144]
    laws = result["laws"]
    assert laws["  self-attention"]["flops"] == pytest.approx(2)
    assert laws["  linears"]["flops"] == pytest.approx(1)
    assert all(row["seconds"]["chunk"] > row["seconds"]["decode"] > 0 for row in result["rows"])


def test_powers_of_what_grows() -> None:
    pixels = [1.0, 4.0, 9.0]
    assert growth.power(pixels, [3.0, 12.0, 27.0]) == pytest.approx(1)
    assert growth.power(pixels, [1.0, 16.0, 81.0]) == pytest.approx(2)
    assert growth.power(pixels, [0.0, 0.0, 0.0]) is None  # what is not counted


def test_slices_of_the_vae(tmp_path: Path) -> None:
    sizes = ("--sizes", "48x32", "--grids", "2x1", "--dim", "8", "--rounds", "1")
    run(tmp_path, "vae_sliced.py", "--preset", "tiny", *sizes, "--output", "vae.json")
    result = json.loads((tmp_path / "vae.json").read_text())
    assert result["summary"]["joined decode"]["seconds"] > 0


def test_self_correction_and_its_picture(tmp_path: Path) -> None:
    files = ("--output", "a.json", "--plot", "a.png")
    run(tmp_path, "self_correction.py", "--updates", "2", "--chunks", "2", *files)
    result = json.loads((tmp_path / "a.json").read_text())
    assert all(len(row["a"]) == len(row["distance"]) == 3 for row in result["streams"].values())
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_steps_of_a_sharded_transformer(tmp_path: Path) -> None:
    run(tmp_path, "dit_sharded.py", "--preset", "tiny", "--rounds", "1", "--output", "dit.json")
    step = json.loads((tmp_path / "dit.json").read_text())["step"]
    assert step["2x1"]["difference"] == 0 and step["1x2"]["speedup"] > 0


def test_a_sheet_of_frames_spread_over_a_video(tmp_path):
    shade = [28 * n for n in range(9)]
    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264rgb", rate=25, options={"crf": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 16, "rgb24"
        for value in shade:
            frame = np.full((16, 32, 3), value, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    run(tmp_path, "contact_sheet.py", "v.mp4", "s.png", "--columns", "2", "--rows", "2")
    made = np.asarray(Image.open(tmp_path / "s.png"))
    assert made.shape == (32, 64, 3)
    assert [int(made[y, x, 0]) for y in (8, 24) for x in (16, 48)] == [
        shade[n] for n in (0, 3, 5, 8)
    ]


def test_faces_drawn_by_other_rules(tmp_path):
    run(tmp_path, "foreign_portraits.py", "--chunks", "1", "--output", "f.json")
    found = json.loads((tmp_path / "f.json").read_text())["portraits"]
    assert len(found) == 9
    for numbers in found.values():
        assert 0 < numbers["mean_frame_away"] <= numbers["worst_away"] < 30
    with Image.open(tmp_path / "f.png") as sheet:
        assert sheet.size == (8 * 96, 9 * 96)


def test_a_teachers_loss_by_timestep(tmp_path):
    """It hears: on its own drawn world it predicts far better than zero, whose loss is above 1."""
    words = ("dataset", "--synthetic", "1", "--seconds", "3", "--output", str(tmp_path / "clips"))
    assert main(list(words)) == 0
    demo = str(BENCHMARKS.parent / "model/demo")
    run(tmp_path, "teacher_loss.py", "--checkpoint", demo, "--data", "clips", "--clips", "8",
        "--chunks", "1", "--output", "loss.json")  # fmt: skip
    (row,) = json.loads((tmp_path / "loss.json").read_text())["rows"]
    assert (row["teacher"], row["data"]) == ("demo", "clips")
    assert list(row["loss"]) == ["1000", "937.5", "833.333", "625", "300"]
    assert all(0.05 < value < 0.7 for value in row["loss"].values())
