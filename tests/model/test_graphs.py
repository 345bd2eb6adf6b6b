"""DiT step, decode step and encoder as graphs: the same bits as eager calls, chunk after chunk.

On a CPU an engine stands in that calls again; the tests marked ``gpu`` make real graphs.
"""

import dataclasses
import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from livetalk_kernels import KernelConfig, UserError, bind_ops
from livetalk_kernels.runtime.cuda_graph import CudaEngine
from livetalk_kernels.runtime.halo import Whole
from livetalk_kernels.testing.graphs import RerunEngine
from livetalk_model.config import DiTConfig, VAEConfig, get_preset
from livetalk_model.dit import DiT
from livetalk_model.loading import load_pipeline
from livetalk_model.pipeline import Pipeline
from livetalk_model.stream.chunk import StreamOptions
from livetalk_model.stream.graphs import GraphedDecodeStep, GraphedEncoder, GraphedStep, StreamCalls
from livetalk_model.stream.session import Session
from livetalk_model.vae import VAE, DecoderCache
from livetalk_model.weights.fill import random_module

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
FP32, BF16 = torch.float32, torch.bfloat16
MODES = [("cpu", FP32), ("cpu", BF16)] + [
    pytest.param("cuda", dtype, marks=pytest.mark.gpu) for dtype in (FP32, BF16)
]
MOTION = 2


def make_engine(device: str):
    return CudaEngine(torch.device(device)) if device == "cuda" else RerunEngine()


def draw(*shape: int, seed: int, device: str = "cpu", dtype: torch.dtype = FP32) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random).to(device, dtype)


def make_dit(device: str = "cpu", dtype: torch.dtype = FP32) -> DiT:
    config = get_preset("tiny").dit
    shape = {"H": config.num_heads, "d": config.head_dim, "D": config.dim}
    ops = bind_ops(KernelConfig(), device=device, dtype=dtype, **shape)
    with torch.device("meta"):
        dit = DiT(config, ops)
    random_module(dit, seed=5, dtype=dtype, device=device, key_map=dit.key_map())
    return dit


def make_vae(device: str = "cpu", dtype: torch.dtype = FP32, **schedule: bool) -> VAE:
    ops = bind_ops(KernelConfig(), device=device, dtype=dtype)
    with torch.device("meta"):
        vae = VAE(VAEConfig(dim=8), ops, **schedule)
    random_module(vae, seed=0, dtype=dtype, device=device)
    vae.prepare()
    return vae


class Conditions:
    """Make the inputs of a session's steps, with new audio for every chunk."""

    def __init__(self, dit: DiT, size: tuple[int, int, int], seed: int = 0, persons: int = 1):
        self.dit, self.size, self.seed, self.persons = dit, size, seed, persons
        config, grid = dit.config, dit.token_grid(size)
        self.constant = {
            "condition": dit.prepare_condition(self._draw(1, 20, *size)),
            "context": dit.prepare_context(
                self._draw(7, config.text_dim), self._draw(1, config.image_len, config.image_dim)
            ),
            "norm_rope": dit.prepare_rope(grid),
        }
        self.steps = dit.prepare_steps(torch.tensor([1000.0, 900.0, 600.0]))

    def _draw(self, *shape: int, seed: int = 0) -> Tensor:
        return draw(
            *shape, seed=self.seed + seed, device=str(self.dit.device), dtype=self.dit.dtype
        )

    def audio(self, chunk: int):
        config: DiTConfig = self.dit.config
        frames, height, width = self.size
        windows = self._draw(
            self.persons, 1 + 4 * (frames - 1), config.audio_window, config.audio_layers,
            config.audio_dim, seed=100 + chunk,
        )  # fmt: skip
        masks = None
        if self.persons > 1:
            masks = torch.zeros(3, 8 * height, 8 * width, device=self.dit.device)
            masks[0, :, : 3 * width], masks[1, :, 4 * width :] = 1, 1
            masks[2] = 1 - masks[0] - masks[1]
        return self.dit.prepare_audio(windows, masks, self.dit.token_grid(self.size)[1:])

    def latent(self, chunk: int, index: int) -> Tensor:
        return self._draw(1, 16, *self.size, seed=1000 + 10 * chunk + index)


def compare_chunk(graphed: GraphedStep, given: Conditions, chunk: int) -> None:
    audio = given.audio(chunk)
    for index, step in enumerate(given.steps):
        latent = given.latent(chunk, index)
        arguments = given.constant | {"step": step, "audio": audio}
        expected = given.dit(latent, **arguments)
        assert expected.std() > 0.1
        assert torch.equal(graphed(latent, **arguments), expected), (chunk, index)


@pytest.mark.parametrize("persons", [1, 2])
@pytest.mark.parametrize(("device", "dtype"), MODES)
def test_dit_steps(device, dtype, persons):
    dit, engine = make_dit(device, dtype), make_engine(device)
    graphed = GraphedStep(dit, engine)
    with torch.inference_mode():  # as a stream does
        given = Conditions(dit, (3, 4, 6), persons=persons)
        for chunk in range(3):
            compare_chunk(graphed, given, chunk)
    if device == "cpu":
        assert (engine.captures, engine.replays) == (1, 9)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_dit_of_two_sessions(device):
    """Other conditions and another size in turn; the graph of a third session displaces one."""
    dit, engine = make_dit(device), make_engine(device)
    graphed = GraphedStep(dit, engine)
    with torch.no_grad():
        first, second = Conditions(dit, (3, 4, 6)), Conditions(dit, (2, 6, 6), seed=7)
        for chunk in range(2):
            compare_chunk(graphed, first, chunk)
            compare_chunk(graphed, second, chunk)
        if device == "cpu":
            assert engine.captures == 2
        compare_chunk(graphed, Conditions(dit, (3, 4, 6), seed=9), 0)
        compare_chunk(graphed, first, 2)
    if device == "cpu":
        assert engine.captures == 4


def test_a_step_gives_fresh_tensors():
    dit = make_dit()
    graphed = GraphedStep(dit, RerunEngine())
    with torch.inference_mode():
        given = Conditions(dit, (2, 4, 4))
        arguments = given.constant | {"audio": given.audio(0), "step": given.steps[0]}
        one = graphed(given.latent(0, 0), **arguments)
        kept = one.clone()
        graphed(given.latent(0, 1), **arguments)
    assert torch.equal(one, kept)


def warmed(vae: VAE, latents: Tensor, known: int) -> DecoderCache:
    """Cache behind the motion latents, known at once or (first chunk) one after the other."""
    cache = DecoderCache()
    vae.warm(latents[:, :, :known], cache)
    if known < MOTION:
        vae.warm(latents[:, :, known:MOTION], cache)
    return cache


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize(("device", "dtype"), MODES)
def test_decode_steps(device, dtype, clamp):
    vae, engine = make_vae(device, dtype), make_engine(device)
    graphed = GraphedDecodeStep(vae, engine)
    for chunk in range(3):
        with torch.inference_mode(chunk != 1):
            z = draw(1, 16, 6, 3, 4, seed=chunk, device=device, dtype=dtype)
            known = MOTION if chunk else 1
            cache, eager = warmed(vae, z, known), warmed(vae, z, known)
            kept = []
            for latent in z[:, :, MOTION:].split(1, dim=2):
                kept.append((graphed(latent, cache, clamp=clamp), latent))
                assert cache.pieces == MOTION + len(kept)
            for frames, latent in kept:  # after all of them: results are fresh
                assert torch.equal(frames, vae.decode_step(latent, eager, clamp=clamp))
            assert cache.frames.keys() == eager.frames.keys()
            for name, history in eager.frames.items():
                assert torch.equal(cache.frames[name], history), name
    if device == "cpu":
        assert (engine.captures, engine.replays) == (1, 9)


@pytest.mark.parametrize("schedule", [{}, {"fuse_bias": True}, {"reuse": False}])
def test_decode_from_the_first_latent_on(schedule):
    """The first three steps leave other shapes than they found, and stay eager."""
    vae, engine = make_vae(**schedule), RerunEngine()
    graphed, cache = GraphedDecodeStep(vae, engine), DecoderCache()
    z = draw(1, 16, 6, 2, 3, seed=1)
    frames = []
    for index, latent in enumerate(z.split(1, dim=2)):
        frames.append(graphed(latent, cache))
        assert engine.replays == max(0, index - 2)
    assert torch.equal(torch.cat(frames, 2), vae.decode(z))


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_decode_of_alternating_streams(device):
    """Streams of equal and of other sizes take turns, one of them now and then eagerly."""
    vae, engine = make_vae(device), make_engine(device)
    graphed = GraphedDecodeStep(vae, engine)
    sizes = ((3, 4), (3, 4), (2, 5))
    latents = [draw(1, 16, 9, *size, seed=index, device=device) for index, size in enumerate(sizes)]
    caches, eager = ([warmed(vae, z, MOTION) for z in latents] for _ in range(2))
    for index in range(MOTION, 9):
        for stream, z in enumerate(latents):
            latent = z[:, :, index : index + 1]
            run = vae.decode_step if (stream, index) == (1, 6) else graphed
            expected = vae.decode_step(latent, eager[stream])
            assert torch.equal(run(latent, caches[stream]), expected), (stream, index)
    if device == "cpu":
        assert engine.captures == 2


def test_a_fork_taken_on_first_is_right():
    vae = make_vae()
    graphed, cache = GraphedDecodeStep(vae, RerunEngine()), DecoderCache()
    z = draw(1, 16, 7, 2, 3, seed=1)
    pieces = z.split(1, dim=2)
    for latent in pieces[:5]:
        graphed(latent, cache)
    fork = cache.fork()
    expected = vae.decode(z)[:, :, 17:21]
    assert torch.equal(graphed(pieces[5], fork), expected)
    assert torch.equal(graphed(pieces[5], cache), expected)


@pytest.mark.parametrize(("device", "dtype"), MODES)
def test_encoder(device, dtype):
    vae, engine = make_vae(device, dtype), make_engine(device)
    graphed = GraphedEncoder(vae, engine)
    with torch.inference_mode():
        results = []
        for chunk in range(3):
            # As a stream does: the last 5 of 9 frames, a view.
            video = draw(1, 3, 9, 16, 24, seed=chunk, device=device, dtype=dtype).clamp(-1, 1)
            results.append((graphed(video[:, :, -5:]), video[:, :, -5:]))
        for latents, video in results:
            assert torch.equal(latents, vae.encode(video))
    if device == "cpu":
        assert (engine.captures, engine.replays) == (1, 3)


class Notes(Whole):
    """A picture that is whole, and notes who asks."""

    def __init__(self):
        self.asked = 0

    def convolve(self, *args, **options):
        self.asked += 1
        return super().convolve(*args, **options)


def test_slices_reach_the_graphs():
    vae = make_vae()
    calls = StreamCalls.graphed(make_dit(), vae, RerunEngine())
    z, video = draw(1, 16, 4, 2, 3, seed=0), draw(1, 3, 5, 16, 24, seed=0)
    for _ in range(2):
        halo = Notes()
        cache = DecoderCache(halo=halo)
        vae.warm(z[:, :, :3], cache)
        halo.asked = 0
        frames = calls.decode_step(z[:, :, 3:], cache)
        assert halo.asked > 0 and cache.halo is halo
        assert torch.equal(frames, vae.decode(z)[:, :, -4:])
        halo.asked = 0
        assert torch.equal(calls.encode(video, halo=halo), vae.encode(video))
        assert halo.asked > 0


def test_wrong_inputs_are_refused_as_ever():
    vae = make_vae()
    calls = StreamCalls.graphed(make_dit(), vae, RerunEngine())
    with pytest.raises(UserError, match="multiples of 8"):
        calls.encode(torch.zeros(1, 3, 5, 12, 16))
    cache = DecoderCache()
    with pytest.raises(UserError, match="1 of 16"):
        calls.decode_step(torch.zeros(1, 8, 1, 2, 2), cache)


def test_eager_when_off_or_on_a_cpu():
    dit, vae = make_dit(), make_vae()
    for wanted in (True, False):
        calls = StreamCalls.of(dit, vae, cuda_graphs=wanted)
        assert calls.step is dit
        assert (calls.decode_step, calls.encode) == (vae.decode_step, vae.encode)


@pytest.mark.gpu
def test_graphs_where_wanted_gpu():
    dit, vae = make_dit("cuda"), make_vae("cuda")
    assert StreamCalls.of(dit, vae, cuda_graphs=False).step is dit
    calls = StreamCalls.of(dit, vae, cuda_graphs=True)
    assert isinstance(calls.step, GraphedStep) and isinstance(calls.encode, GraphedEncoder)
    with torch.inference_mode():  # all three in turn, in one pool
        given = Conditions(dit, (3, 4, 6))
        for chunk in range(3):
            compare_chunk(calls.step, given, chunk)
            z = draw(1, 16, 5, 3, 4, seed=chunk, device="cuda")
            cache, eager = warmed(vae, z, MOTION), warmed(vae, z, MOTION)
            for latent in z[:, :, MOTION:].split(1, dim=2):
                frames = calls.decode_step(latent, cache)
                assert torch.equal(frames, vae.decode_step(latent, eager))
            video = draw(1, 3, 5, 16, 24, seed=chunk, device="cuda")
            assert torch.equal(calls.encode(video), vae.encode(video))


# The benchmark ---------------------------------------------------------------------------

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "graphs.py"


@pytest.fixture(scope="module")
def benchmark_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("graphs_benchmark", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("intervals", "span", "busy"),
    [
        ([(1, 2)], 1, 1),
        ([(3, 4), (0, 1)], 4, 2),
        ([(0, 2), (1, 3), (5, 6)], 6, 4),  # two streams
        ([(0, 10), (2, 3), (4, 5)], 10, 10),  # one within another
        ([(0, 1), (1, 2)], 2, 2),
        ([(1, 1)], 0, 0),
    ],
)
def test_gaps(benchmark_script, intervals, span, busy):
    gaps = benchmark_script.Gaps.of(intervals)
    assert (gaps.kernels, gaps.span, gaps.busy) == (len(intervals), span, busy)
    assert math.isclose(gaps.share, 1 - busy / span if span else 0.0)


def test_gpu_work_of_a_trace(benchmark_script):
    kinds = ("kernel", "gpu_memcpy", "cuda_runtime", "gpu_user_annotation", "kernel")
    events = [
        {"cat": kind, "ts": 1e6 * index, "dur": 5e5, "name": kind}
        for index, kind in enumerate(kinds)
    ]
    trace = {"traceEvents": [*events, {"ph": "M", "name": "process_name"}]}
    expected = [(0.0, 0.5), (1.0, 1.5), (4.0, 4.5)]
    assert benchmark_script.gpu_intervals(trace) == expected


def test_benchmark_compares_and_reports(benchmark_script):
    gaps = [benchmark_script.Gaps.of([(0, 1), (3, 4)]), benchmark_script.Gaps.of([(0, 2)])]
    row = benchmark_script.compare([4.0, 5.0, 4.5], [2.0, 2.5, 2.25], gaps)
    assert row["ratio"] == 2
    assert row["eager"]["gaps"]["share"] == 0.5 and row["graph"]["gaps"]["share"] == 0
    assert math.isclose(row["eager"]["idle"], 1 - 2 / 4.5)
    timed = {"DiT step": {"state": "timed", "note": "", **row}}
    assert "2.000 x" in benchmark_script.table({"calls": timed})
    blind = benchmark_script.compare([2.0], [1.0], [None, None])
    timed["encode"] = {"state": "timed", "note": "", **blind}
    assert blind["graph"]["idle"] is None and "encode" in benchmark_script.table({"calls": timed})


def test_a_graph_that_differs_is_a_red_row(benchmark_script):
    cpu = torch.device("cpu")
    preset = dataclasses.replace(get_preset("tiny"), size=(32, 32))
    dit, vae = benchmark_script.models(preset, KernelConfig(), cpu, torch.float32)
    args = benchmark_script.make_parser().parse_args(["--rounds", "1"])
    with torch.inference_mode():
        eager = benchmark_script.runs(dit, vae, StreamCalls.of(dit, vae, cuda_graphs=False), preset)
        calls = StreamCalls.graphed(dit, vae, RerunEngine())
        graph = benchmark_script.runs(dit, vae, calls, preset)
        for name in ("DiT step", "decode step", "encode"):
            assert benchmark_script.difference(eager[name], graph[name]) is None
        wrong: Callable[[int], Tensor] = lambda turn: graph["encode"](min(turn, 2))  # noqa: E731
        take = partial(benchmark_script.take, eager["encode"], device=cpu, args=args)
        row = take(wrong, budget=benchmark_script.Budget())
        assert row["state"] == "red" and "call 4: the graph differs in" in row["note"]
        assert take(wrong, budget=benchmark_script.Budget(0.0))["note"] == "no time was left"
    broken = take(lambda turn: 1 / 0, budget=benchmark_script.Budget())
    assert (broken["state"], broken["note"]) == ("failed", "ZeroDivisionError: division by zero")
    assert "red: call 4" in benchmark_script.table({"calls": {"encode": row}})


def test_benchmark_says_that_it_needs_a_gpu():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--preset", "tiny"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    assert "need an NVIDIA GPU" in done.stderr and "Traceback" not in done.stderr


# In a stream ------------------------------------------------------------------------------


def frames_of(pipeline: Pipeline, calls: StreamCalls) -> np.ndarray:
    """Two sessions of three chunks each, one after the other."""
    avatar = pipeline.prepare(Image.new("RGB", (48, 48), (90, 120, 80)), size=(32, 48))
    speech = np.random.default_rng(0).normal(0, 0.1, round(2.6 * 16000)).astype(np.float32)
    taken = []
    for _ in range(2):
        with Session(
            pipeline.dit, pipeline.vae, pipeline.audio_encoder, avatar, StreamOptions(), calls=calls
        ) as session:
            taken += [*session.push(speech), *session.finish()]
    return np.concatenate(taken)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_stream_of_graphs_gives_the_frames_of_eager_calls(device: str) -> None:
    pipeline = load_pipeline(preset="tiny", device=device, dtype="fp32")
    eager = StreamCalls.of(pipeline.dit, pipeline.vae, cuda_graphs=False)
    graphed = StreamCalls.graphed(pipeline.dit, pipeline.vae, make_engine(device))
    assert np.array_equal(frames_of(pipeline, graphed), frames_of(pipeline, eager))


@pytest.mark.parametrize("option", ["cuda_graphs", "fuse_bias"])
def test_the_published_schedule_stands_alone(option: str) -> None:
    with pytest.raises(UserError, match="--no-reuse"):
        load_pipeline(preset="tiny", device="cpu", reuse=False, **{option: True})
