"""The DiT against the golden tensors of the published model, and against itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from livetalk_kernels import KernelConfig
from livetalk_kernels.ops import Ops, bind_ops
from livetalk_model.config import DiTConfig, get_preset
from livetalk_model.dit import DiT, sinusoid
from livetalk_model.weights.fill import expected_keys, load_module, open_weights, random_module

GPU_BACKENDS = ("auto", "reference", "sdpa", "triton") if torch.cuda.is_available() else ()
MODELS = ("tiny_a", "tiny_a_sharded", "tiny_a128", "tiny_b")
TIMESTEPS = {
    "t1000": 1000.0,
    "t937.5": 937.5,
    "t833.333": 833.3333129882812,
    "t625": 625.0,
    "t250": 250.0,
    "t1": 1.0,
}


def relative(actual: Tensor, expected: Tensor) -> float:
    """Relative L2 distance in float64."""
    difference = actual.double() - expected.double()
    return float(difference.norm() / expected.double().norm())


def windows(frames: Tensor, size: int = 5) -> Tensor:
    """[F, layers, C] -> [F, size, layers, C], clamped at both ends."""
    offsets = torch.arange(size) - size // 2
    index = (torch.arange(len(frames))[:, None] + offsets).clamp(0, len(frames) - 1)
    return frames[index]


class Recorder:
    """Ops that note what goes in and comes out of every call."""

    def __init__(self, ops: Ops) -> None:
        """Wrap bound ops."""
        self.calls: list[tuple[str, tuple, tuple]] = []
        for name in ops.chosen:
            setattr(self, name, self._wrap(name, getattr(ops, name)))

    def _wrap(self, name: str, run: Callable) -> Callable:
        def call(*args, **options):
            out = run(*args, **options)
            self.calls.append((name, args, out if isinstance(out, tuple) else (out,)))
            return out

        return call

    def of(self, name: str) -> list[tuple[tuple, tuple]]:
        """Arguments and outputs of all calls of one op, in order."""
        return [(args, out) for op, args, out in self.calls if op == name]


def build(config: DiTConfig, *, reuse: bool = True, ops: Ops | None = None) -> DiT:
    """Model on the meta device."""
    with torch.device("meta"):
        return DiT(config, ops or bind_ops(device="cpu", dtype=torch.float32), reuse=reuse)


def load(folder: Path, *, reuse: bool = True, ops: Ops | None = None) -> DiT:
    """Golden model in float32."""
    dit = build(DiTConfig.from_json(folder / "config.json"), reuse=reuse, ops=ops)
    with open_weights(folder) as files:
        load_module(dit, files, dtype=torch.float32, device="cpu", key_map=dit.key_map())
    return dit


def inputs(dit: DiT, golden: Callable, grid: str, timesteps: Tensor, persons: int = 1) -> dict:
    """Everything that a step takes, for every timestep."""
    shared, local = golden("dit_inputs_shared"), golden(f"dit_inputs_{grid}")
    names = ("audio_frames", "audio_frames_p2")[:persons]
    audio = torch.stack([windows(local[name]) for name in names])
    latent = local["latent"][None]
    size = dit.token_grid(latent)
    masks = local["ref_target_masks"] if persons > 1 else None
    return {
        "latent": latent,
        "steps": dit.prepare_steps(timesteps),
        "condition": dit.prepare_condition(local["y"]),
        "context": dit.prepare_context(shared["context"], shared["clip_fea"]),
        "audio": dit.prepare_audio(audio, masks, size[1:]),
        "norm_rope": dit.prepare_rope(size),
    }


@pytest.fixture(scope="session")
def small_inputs(small_golden) -> Callable[[str], dict[str, Tensor]]:
    """Loader of the small golden tensors under the names of the whole set."""
    images = [small_golden(f"dit_image_{half}")["clip_fea"] for half in (0, 1)]
    shared = small_golden("dit_text") | {"clip_fea": torch.cat(images, dim=1)}
    return lambda name: shared if name == "dit_inputs_shared" else small_golden(name)


@torch.inference_mode()
def run(dit: DiT, given: dict) -> list[Tensor]:
    """One step per timestep."""
    given = dict(given)
    latent, steps = given.pop("latent"), given.pop("steps")
    return [dit(latent, step=step, **given) for step in steps]


def compare_steps(dit: DiT, given: Callable, expected: dict[str, Tensor], grid: str) -> None:
    """One step at every timestep that has an expected output."""
    steps = {key: value for key, value in TIMESTEPS.items() if key in expected}
    assert len(steps) >= 2
    outputs = run(dit, inputs(dit, given, grid, torch.tensor(list(steps.values()))))
    for key, output in zip(steps, outputs, strict=True):
        assert output.dtype == torch.float32
        assert relative(output, expected[key]) < 1e-5, key


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("name", ["tiny_a", "tiny_a_sharded", "tiny_a128"])
def test_published_outputs_small(name, reuse, small_golden, small_inputs, golden_checkpoint):
    dit = load(golden_checkpoint(name), reuse=reuse)
    expected = small_golden(f"dit_out_{name.removesuffix('_sharded')}_g1")
    compare_steps(dit, small_inputs, expected, "g1")


@pytest.mark.parametrize("reuse", [True, False])
def test_published_two_persons_small(reuse, small_golden, small_inputs, golden_checkpoint):
    dit = load(golden_checkpoint("tiny_a"), reuse=reuse)
    given = inputs(dit, small_inputs, "g1", torch.tensor([937.5]), persons=2)
    expected = small_golden("dit_out_tiny_a_g1")["two_person_t937.5"]
    assert relative(run(dit, given)[0], expected) < 1e-4


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("grid", ["g1", "g2"])
@pytest.mark.parametrize("name", MODELS)
def test_published_outputs(name, grid, reuse, golden, golden_checkpoint):
    dit = load(golden_checkpoint(name), reuse=reuse)
    expected = golden(f"dit_out_{name.removesuffix('_sharded')}_{grid}")
    assert expected.keys() >= TIMESTEPS.keys()
    compare_steps(dit, golden, expected, grid)


@pytest.mark.parametrize("name", ["tiny_a", "tiny_b"])
def test_published_two_persons(name, golden, golden_checkpoint):
    for grid in ("g1", "g2"):
        dit = load(golden_checkpoint(name))
        given = inputs(dit, golden, grid, torch.tensor([937.5]), persons=2)
        expected = golden(f"dit_out_{name}_{grid}")["two_person_t937.5"]
        assert relative(run(dit, given)[0], expected) < 1e-4, grid


def check_bf16(
    folder: Path, given: Callable, expected: dict[str, Tensor], device: str, backend: str
) -> None:
    """In bf16 no worse than the published mixed precision, by the stored results of both."""
    config = DiTConfig.from_json(folder / "config.json")
    choice = KernelConfig.parse([backend])
    heads = {"H": config.num_heads, "d": config.head_dim, "D": config.dim}
    dit = build(config, ops=bind_ops(choice, device=device, dtype=torch.bfloat16, **heads))
    with open_weights(folder) as files:
        load_module(dit, files, dtype=torch.bfloat16, device=device, key_map=dit.key_map())

    def placed(name: str) -> dict[str, Tensor]:
        return {key: tensor.to(device) for key, tensor in given(name).items()}

    output = run(dit, inputs(dit, placed, "g1", torch.tensor([937.5])))[0].cpu()
    published = relative(expected["bf16_emulated_t937.5"], expected["t937.5"])
    assert relative(output, expected["t937.5"]) < 1.25 * published


@pytest.mark.parametrize(
    ("device", "backend"),
    [("cpu", "auto"), ("cpu", "reference")]
    + [pytest.param("cuda", name, marks=pytest.mark.gpu) for name in GPU_BACKENDS],
)
@pytest.mark.parametrize("name", ["tiny_a", "tiny_a128"])
def test_bf16_is_as_good_as_the_published_mixed_precision_small(
    name, device, backend, small_golden, small_inputs, golden_checkpoint
):
    expected = small_golden(f"dit_out_{name}_g1")
    check_bf16(golden_checkpoint(name), small_inputs, expected, device, backend)


def test_bf16_is_as_good_as_the_published_mixed_precision(golden, golden_checkpoint):
    expected = golden("dit_out_tiny_b_g1")
    check_bf16(golden_checkpoint("tiny_b"), golden, expected, "cpu", "auto")


def test_published_trace(golden, golden_checkpoint):
    ops = Recorder(bind_ops(device="cpu", dtype=torch.float32))
    dit = load(golden_checkpoint("tiny_b"), ops=ops)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Callable:
        def hook(module, args, out):
            seen[name] = (args[0], out[0] if isinstance(out, tuple) else out)

        return hook

    for name in ("text_embedding", "img_emb", "audio_proj", "head", "blocks.0.self_attn"):
        dit.get_submodule(name).register_forward_hook(note(name))
    for name in ("cross_attn", "audio_cross_attn", "ffn"):
        dit.get_submodule(f"blocks.0.{name}").register_forward_hook(note(f"blocks.0.{name}"))
    trace = golden("dit_trace_tiny_b_g1_one_person")
    given = inputs(dit, golden, "g1", torch.tensor([937.5]))
    step = given["steps"][0]
    prepared = len(ops.calls)
    run(dit, given)
    ops.calls = ops.calls[prepared:]
    seams = ops.of("add_norm")
    (q_in, k_in, *_), (q, k) = ops.of("rms_norm_rope")[0]
    (_, _, v), (attended, _) = ops.of("chunk_attention")[0]
    one = torch.tensor([0, 1, 0, 0, 1, 0])[:, None]
    # 23 rows of text, then the padding row that represents all others.
    rows = torch.arange(40).clamp(max=23)
    wave = sinusoid(torch.tensor([937.5]), dit.config.freq_dim)
    patches = trace["patch_embedding.out"].flatten(2).transpose(1, 2)
    actual = {
        "time_embedding.in": wave,
        "text_embedding.out_first40": seen["text_embedding"][1][:, rows],
        "img_emb.out_first40": seen["img_emb"][1][:, :40],
        "audio_proj.out": seen["audio_proj"][1][:, :, :4],
        "block0.modulated_e": step.blocks[:1] - one,
        "block0.in": seams[0][1][0],
        "block0.self_attn.in": seams[0][1][1],
        "block0.self_attn.norm_q.in": q_in,
        "block0.self_attn.norm_k.in": k_in,
        "block0.attn_self.q": q,
        "block0.attn_self.k": k,
        "block0.attn_self.v": v,
        "block0.attn_self.o": attended,
        "block0.self_attn.out": seen["blocks.0.self_attn"][1],
        "block0.norm3.in": seams[1][1][0],
        "block0.cross_attn.in": seams[1][1][1],
        "block0.cross_attn.out": seen["blocks.0.cross_attn"][1],
        "block0.norm_x.in": seams[2][1][0],
        "block0.audio_cross_attn.in": seams[2][1][1],
        "block0.audio_cross_attn.out": seen["blocks.0.audio_cross_attn"][1],
        "block0.norm2.in": seams[3][1][0],
        "block0.ffn.in": seams[3][1][1],
        "block0.ffn.out": seen["blocks.0.ffn"][1],
        "block0.out": seams[4][1][0],
        "block1.out": seams[8][1][0],
        "head.out": seen["head"][1],
    }
    for name, value in actual.items():
        assert relative(value.view_as(trace[name]), trace[name]) < 1e-5, name
    assert relative(seams[0][1][0], patches) < 1e-5
    for x in ("norm1", "norm2"):  # the plain norm behind the modulation
        weight, shift = (1, 0) if x == "norm1" else (4, 3)
        normed = trace[f"block0.{x}.out"]
        modulated = normed * step.blocks[0, weight] + step.blocks[0, shift]
        given_in = actual["block0.self_attn.in" if x == "norm1" else "block0.ffn.in"]
        assert relative(given_in, modulated) < 1e-5, x


def test_published_two_person_trace(golden, golden_checkpoint, monkeypatch):
    ops = Recorder(bind_ops(device="cpu", dtype=torch.float32))
    dit = load(golden_checkpoint("tiny_b"), ops=ops)
    trace = golden("dit_trace_tiny_b_g1_two_person")
    run(dit, inputs(dit, golden, "g1", torch.tensor([937.5]), persons=2))
    (q, k, _), (attended,) = ops.of("audio_attention")[0]
    frames = trace["block0.attn_audio.k"].shape[0]
    assert relative(k[0], trace["block0.attn_audio.k"]) < 1e-5
    assert relative(q[0].unflatten(0, (frames, -1)), trace["block0.attn_audio.q"]) < 1e-4
    assert relative(attended[0].unflatten(0, (frames, -1)), trace["block0.attn_audio.o"]) < 1e-4
    assert relative(ops.of("add_norm")[4][1][0], trace["block0.out"]) < 1e-4


def test_keys_of_the_published_checkpoint(facts):
    published = {}
    for tensor in facts["dit"]["tensors"]:
        first, last = tensor.get("i", (0, 0))
        for index in range(first, last + 1):
            published[tensor["key"].replace("{i}", str(index))] = tuple(tensor["shape"])
    dit = build(get_preset("14b").dit)
    assert expected_keys(dit, dit.key_map()) == published


SIZES = [
    DiTConfig(dim=48, ffn_dim=40, num_heads=3, num_layers=2, intermediate_dim=8, output_dim=16,
              audio_layers=2, audio_dim=8, text_dim=24, image_dim=16),
    DiTConfig(dim=64, ffn_dim=32, num_heads=1, num_layers=1, intermediate_dim=4, output_dim=8,
              audio_layers=1, audio_dim=12, context_tokens=4, audio_window=3, text_len=20),
]  # fmt: skip


def random_inputs(config: DiTConfig, dit: DiT, persons: int, size=(3, 4, 6)) -> dict:
    """Random conditions in the model's dtype."""
    random = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    frames, height, width = size
    grid = dit.token_grid(size)
    audio = draw(
        persons, 1 + 4 * (frames - 1), config.audio_window, config.audio_layers, config.audio_dim
    )
    masks = torch.zeros(3, 8 * height, 8 * width)
    masks[0, :, : 3 * width], masks[1, :, 4 * width :] = 1, 1
    masks[2] = 1 - masks[0] - masks[1]
    return {
        "latent": draw(1, 16, *size),
        "steps": dit.prepare_steps(torch.tensor([1000.0, 600.0])),
        "condition": dit.prepare_condition(draw(1, 20, *size)),
        "context": dit.prepare_context(
            draw(7, config.text_dim), draw(1, config.image_len, config.image_dim)
        ),
        "audio": dit.prepare_audio(audio, masks if persons > 1 else None, grid[1:]),
        "norm_rope": dit.prepare_rope(grid),
    }


@pytest.mark.parametrize("persons", [1, 2])
@pytest.mark.parametrize("config", SIZES, ids=["three_heads", "one_head"])
def test_reuse_changes_no_result(config, persons):
    outputs = []
    for reuse in (True, False):
        dit = build(config, reuse=reuse)
        random_module(dit, seed=5, dtype=torch.float32, device="cpu", key_map=dit.key_map())
        outputs.append(run(dit, random_inputs(config, dit, persons)))
    for once, published in zip(*outputs, strict=True):
        assert once.std() > 0.1
        assert relative(once, published) < 1e-5


def test_second_voice_matters():
    config = SIZES[0]
    dit = build(config)
    random_module(dit, seed=5, dtype=torch.float32, device="cpu", key_map=dit.key_map())
    given = random_inputs(config, dit, 2)
    both = run(dit, given)[0]
    audio = given["audio"]
    swapped = [type(kv)(k=kv.k.flip(2), v=kv.v.flip(2)) for kv in audio.layers]
    given["audio"] = type(audio)(layers=swapped, regions=audio.regions)
    assert relative(run(dit, given)[0], both) < 1e-5  # a set of keys has no order
    silent = [type(kv)(k=kv.k, v=kv.v.clone()) for kv in audio.layers]
    for kv in silent:
        kv.v[:, :, config.context_tokens :] = 0
    given["audio"] = type(audio)(layers=silent, regions=audio.regions)
    assert relative(run(dit, given)[0], both) > 1e-3
