"""What is special about ``causal_conv3d`` and ``rms_norm_silu`` beyond the checks of every op."""

import platform
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from livetalk_kernels import KernelConfig, bind_ops
from livetalk_kernels.dispatch import pick
from livetalk_kernels.ops.causal_conv3d import causal_conv3d
from livetalk_kernels.ops.rms_norm_silu import rms_norm_silu
from livetalk_kernels.registry import backend_names, load_backend, load_op
from livetalk_kernels.spec import Case

LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]
CPU = torch.device("cpu")
HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
COMPILER = ["g++", "-std=c++20", "-fPIC", f"-I{CSRC}", f"-I{CSRC / 'include'}"]


def runnable(op: str, dtype: torch.dtype) -> list[str]:
    case = Case(op=op, device=CPU, dtype=dtype)
    return [name for name in backend_names(op) if load_backend(op, name).supports(case) is None]


def random(*shape: int, seed: int = 0, layout: torch.memory_format = LAYOUTS[0]) -> Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=layout)


def direct(
    frames: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int, int]
) -> Tensor:
    """The contract's formula in fp64, tap by tap, on frames that are already padded."""
    sizes = [
        (size - k) // s + 1
        for size, k, s in zip(frames.shape[2:], weight.shape[2:], stride, strict=True)
    ]
    shape = (frames.shape[0], weight.shape[0], *sizes)
    y = torch.zeros(shape, dtype=torch.float64)
    for tap in product(*map(range, weight.shape[2:])):
        part = frames.double()
        for dim, (start, step, size) in enumerate(zip(tap, stride, sizes, strict=True), start=2):
            index = torch.arange(start, start + step * (size - 1) + 1, step)
            part = part.index_select(dim, index)
        y += torch.einsum("oi,bithw->bothw", weight[(..., *tap)].double(), part)
    return y if bias is None else y + bias.double().view(-1, 1, 1, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", runnable("causal_conv3d", torch.float32))
@pytest.mark.parametrize(
    ("channels", "zeros", "stored", "new", "kernel", "stride", "padding"),
    [
        ((4, 6), 2, 0, 1, (3, 3, 3), (1, 1, 1), (1, 1, 1, 1)),
        ((4, 6), 2, 0, 4, (3, 3, 3), (1, 1, 1), (1, 1, 1, 1)),
        ((4, 6), 1, 1, 2, (3, 3, 3), (1, 1, 1), (1, 1, 1, 1)),
        ((4, 6), 2, 0, 3, (3, 1, 1), (1, 1, 1), (0, 0, 0, 0)),
        ((4, 6), 1, 0, 4, (3, 3, 3), (2, 1, 1), (1, 1, 1, 1)),
        ((4, 6), 0, 1, 4, (3, 1, 1), (2, 1, 1), (0, 0, 0, 0)),
        ((4, 6), 0, 0, 3, (1, 3, 3), (1, 2, 2), (0, 1, 0, 1)),
        ((4, 6), 0, 0, 4, (1, 1, 1), (2, 1, 1), (0, 0, 0, 0)),
        ((4, 6), 0, 2, 2, (3, 3, 3), (1, 1, 1), (0, 1, 2, 3)),
        ((3, 20), 0, 2, 4, (3, 3, 3), (1, 1, 1), (1, 1, 1, 1)),
        ((3, 20), 1, 1, 1, (3, 3, 3), (1, 1, 1), (1, 1, 1, 1)),
        ((20, 3), 0, 2, 4, (3, 3, 3), (1, 1, 1), (1, 1, 0, 0)),
        ((64, 64), 0, 2, 1, (3, 3, 3), (1, 1, 1), (1, 1, 1, 1)),
        ((64, 64), 0, 2, 3, (3, 3, 3), (1, 1, 1), (1, 1, 1, 1)),
        ((64, 64), 0, 2, 4, (3, 3, 3), (1, 1, 1), (1, 0, 1, 1)),
        ((64, 65), 1, 1, 4, (3, 3, 3), (1, 1, 1), (0, 1, 0, 1)),
    ],
)
def test_conv_formula(
    channels: tuple[int, int],
    zeros: int,
    stored: int,
    new: int,
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    padding: tuple[int, int, int, int],
    backend: str,
    layout: torch.memory_format,
) -> None:
    inputs, outputs = channels
    x = random(2, inputs, new, 6, 5, seed=1, layout=layout)
    history = random(2, inputs, stored, 6, 5, seed=2, layout=layout) if stored else None
    weight = random(outputs, inputs, *kernel, seed=3, layout=layout)
    bias = random(outputs, seed=4) if zeros else None
    top, bottom, left, right = padding
    frames = x if history is None else torch.cat([history, x], dim=2)
    frames = functional.pad(frames, (left, right, top, bottom, zeros, 0))
    truth = direct(frames, weight, bias, stride)
    y = causal_conv3d(
        x, history, weight, bias,
        zero_frames=zeros, stride=stride, padding=padding, backend=backend,
    )  # fmt: skip
    assert y.shape == truth.shape and y.dtype == torch.float32
    assert (y.double() - truth).norm() < 1e-6 * truth.norm()


@pytest.mark.parametrize("backend", runnable("causal_conv3d", torch.float32))
def test_empty_history_is_no_history(backend: str) -> None:
    x, weight = random(1, 4, 3, 6, 5), random(4, 4, 3, 3, 3)
    run = load_backend("causal_conv3d", backend).run
    empty = run(x, x[:, :, :0], weight, None, zero_frames=1)
    assert torch.equal(empty, run(x, None, weight, None, zero_frames=1))
    assert empty.shape == (1, 4, 2, 4, 3)


@pytest.mark.parametrize("backend", runnable("causal_conv3d", torch.float32))
@pytest.mark.parametrize("channels", [8, 64])
def test_pieces_equal_the_whole(channels: int, backend: str) -> None:
    """Two frames of history make a stream of pieces equal to one long video."""
    video = random(1, channels, 9, 5, 6)
    weight = random(channels, channels, 3, 3, 3, seed=1)
    run = load_backend("causal_conv3d", backend).run
    whole = run(video, None, weight, None, zero_frames=2, padding=(1, 1, 1, 1))
    pieces = []
    for start, stop in ((0, 1), (1, 5), (5, 6), (6, 9)):
        history = video[:, :, max(0, start - 2) : start]
        pieces.append(
            run(
                video[:, :, start:stop], history, weight, None,
                zero_frames=2 - history.shape[2], padding=(1, 1, 1, 1),
            )
        )  # fmt: skip
    torch.testing.assert_close(torch.cat(pieces, 2), whole, rtol=1e-4, atol=1e-4)


def test_zero_frames_beyond_the_kernel_are_refused() -> None:
    with pytest.raises(AssertionError, match="zero frames"):
        causal_conv3d(random(1, 2, 3, 4, 4), None, random(2, 2, 3, 1, 1), None, zero_frames=3)


def test_taps_on_zero_frames_cost_nothing() -> None:
    spec = load_op("causal_conv3d")
    cases = {case.name: case for case in spec.cases(CPU, torch.float32)}
    assert spec.cost(cases["first"]).flops == 2 * 8 * 6 * 9 * 16 * 16  # one tap of three
    assert spec.cost(cases["zero_front"]).flops == 2 * 8 * 6 * (2 + 9) * 9 * 16 * 16


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "cpu"), (torch.bfloat16, "cpu")])
def test_backend_of_a_cpu(dtype: torch.dtype, name: str) -> None:
    case = Case(op="causal_conv3d", device=CPU, dtype=dtype)
    assert pick(case, "auto", named=False).name == name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("taps", [(3, 3, 3), (1, 1, 1), (3, 1, 1), (1, 2, 2)])
def test_packed_weight_gives_the_same(taps: tuple[int, int, int], dtype: torch.dtype) -> None:
    ops = bind_ops(KernelConfig(), device="cpu", dtype=dtype)
    x, weight = (
        random(*shape, layout=LAYOUTS[1]).to(dtype) for shape in ((1, 20, 3, 6, 5), (40, 20, *taps))
    )
    packed = ops.pack("causal_conv3d", weight)
    assert packed is not None and packed.dtype == dtype
    expected = ops.causal_conv3d(x, None, weight, None)
    shape_only = weight.new_full((), torch.nan).expand(weight.shape)
    actual = ops.causal_conv3d(x, None, shape_only, None, packed=packed)
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weight_is_as_large_as_the_weight(dtype: torch.dtype) -> None:
    ops = bind_ops(KernelConfig(), device="cpu", dtype=dtype)
    weight = random(96, 48, 3, 3, 3).to(dtype)
    packed = ops.pack("causal_conv3d", weight)
    assert packed is not None and packed.nbytes == weight.nbytes


def test_other_weights_are_not_packed() -> None:
    ops = bind_ops(KernelConfig(), device="cpu", dtype=torch.float32)
    assert ops.pack("causal_conv3d", random(3, 32, 3, 3, 3)) is None
    assert ops.pack("causal_conv3d", random(32, 3, 3, 3, 3)) is None
    reference = bind_ops(KernelConfig(default="reference"), device="cpu", dtype=torch.float32)
    assert reference.pack("causal_conv3d", random(32, 32, 3, 3, 3)) is None


ODD = [  # inputs, outputs, zero frames, stored, new, taps, stride, padding, rows, columns
    (16, 32, 0, 2, 4, (3, 3, 3), (1, 1, 1), (1, 1, 1, 1), 8, 8),
    (20, 40, 1, 1, 3, (3, 3, 3), (1, 1, 1), (1, 1, 0, 1), 23, 37),
    (96, 64, 0, 2, 1, (3, 3, 3), (1, 1, 1), (1, 1, 1, 1), 16, 16),
    (64, 64, 2, 0, 1, (3, 3, 3), (1, 1, 1), (1, 1, 1, 1), 16, 16),
    (72, 96, 2, 0, 5, (3, 3, 3), (1, 1, 1), (1, 0, 0, 1), 17, 16),
    (40, 64, 2, 0, 1, (3, 3, 3), (1, 1, 1), (1, 1, 1, 1), 9, 21),
    (64, 40, 0, 0, 3, (1, 3, 3), (1, 1, 1), (1, 1, 0, 1), 13, 12),
    (32, 48, 0, 0, 3, (1, 3, 3), (1, 2, 2), (0, 1, 0, 1), 16, 12),
    (48, 32, 1, 0, 4, (3, 1, 1), (2, 1, 1), (0, 0, 0, 0), 7, 9),
    (33, 65, 0, 0, 2, (1, 2, 2), (1, 1, 1), (1, 1, 1, 1), 16, 16),
    (17, 18, 0, 0, 1, (1, 1, 1), (1, 1, 1), (0, 0, 0, 0), 5, 5),
    (160, 33, 0, 0, 2, (5, 1, 2), (1, 1, 1), (0, 0, 1, 1), 3, 70),
    (272, 40, 0, 2, 2, (3, 3, 3), (1, 1, 1), (1, 1, 1, 1), 9, 17),
]


@dataclass(frozen=True, kw_only=True)
class Odd:
    """Inputs of one of `ODD`, channels-last, and what the contract's formula makes of them."""

    x: Tensor
    history: Tensor
    weight: Tensor
    bias: Tensor
    zeros: int
    truth: Tensor

    @classmethod
    def of(cls, odd: tuple, dtype: torch.dtype) -> "Odd":
        inputs, outputs, zeros, stored, new, taps, stride, padding, rows, columns = odd
        x = random(2, inputs, new, rows, columns, seed=1, layout=LAYOUTS[1]).to(dtype)
        history = random(2, inputs, stored, rows, columns, seed=2, layout=LAYOUTS[1]).to(dtype)
        fan_in = inputs * taps[0] * taps[1] * taps[2]
        weight = (random(outputs, inputs, *taps, seed=3) * fan_in**-0.5).to(dtype)
        bias = random(outputs, seed=4).to(dtype)
        top, bottom, left, right = padding
        frames = functional.pad(torch.cat([history, x], 2), (left, right, top, bottom, zeros, 0))
        if frames.shape[2] < taps[0]:
            frames = functional.pad(frames, (0, 0, 0, 0, taps[0] - 1 - zeros, 0))
            zeros = taps[0] - 1
        truth = direct(frames, weight, bias, stride)
        return cls(x=x, history=history, weight=weight, bias=bias, zeros=zeros, truth=truth)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("odd", ODD, ids=str)
def test_each_algorithm_on_every_instruction_set(odd: tuple, dtype: torch.dtype) -> None:
    """fp32 as exact as `test_conv_formula` asks; bf16 as exact as its result is rounded."""
    bound = 1e-6 if dtype == torch.float32 else 3e-3
    *_, taps, stride, padding, _, _ = odd
    given = Odd.of(odd, dtype)
    packed = torch.ops.livetalk.causal_conv3d_pack.default(given.weight)
    history = given.history if given.history.shape[2] else None
    methods = ["direct"]
    if taps[1:] == (3, 3) and stride == (1, 1, 1):
        methods.append("winograd")
    if dtype == torch.bfloat16:
        methods.append("tiles")
    for method in methods:
        y = torch.ops.livetalk.causal_conv3d_packed.default(
            given.x, history, packed, given.bias, len(given.bias), taps, given.zeros, stride,
            padding, method,
        )  # fmt: skip
        error = (y.permute(0, 4, 1, 2, 3).double() - given.truth).norm()
        assert error <= bound * given.truth.norm(), method


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is an extension of x86-64")
def test_what_is_compiled_for_amx(tmp_path: Path) -> None:
    """No AMX may be at hand: sums stay in four tiles, and registers that are claimed are freed."""
    flags = ["-mavx2", "-mfma", *(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq", "bf16"))]
    flags += ["-mamx-tile", "-mamx-bf16", "-DLIVETALK_ISA=amx"]
    target, source = tmp_path / "conv3d_tiles.o", CSRC / "cpu/conv3d_tiles.cpp"
    subprocess.run([*COMPILER, "-O3", *flags, "-c", "-o", str(target), str(source)], check=True)
    command = ["objdump", "-d", "--no-show-raw-insn", str(target)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    count = Counter(re.findall(r"\b(tdpbf16ps|tile\w+|ldtilecfg)\b", listing))
    assert count["tdpbf16ps"] == count["tileloadd"] >= 4, count
    assert count["tilezero"] == count["tilestored"] >= 4, count
    assert set(re.findall(r"tilestored\s+%tmm(\d)", listing)) == set("0123")
    assert set(re.findall(r"tileloadd\s.*%tmm(\d)", listing)) == set("4567")
    assert count["tilerelease"] >= count["ldtilecfg"] >= 1, count


@pytest.mark.parametrize("method", ["direct", "tiles"])
def test_direct_convolution_is_the_same_on_any_number_of_threads(method: str) -> None:
    """Pixels too few for all threads are shared by panels of outputs."""
    dtype = torch.bfloat16 if method == "tiles" else torch.float32
    x, weight = random(1, 80, 1, 5, 6, layout=LAYOUTS[1]), random(70, 80, 3, 3, 3, seed=1)
    history = random(1, 80, 2, 5, 6, seed=2, layout=LAYOUTS[1])
    x, weight, history = (tensor.to(dtype) for tensor in (x, weight, history))
    packed = torch.ops.livetalk.causal_conv3d_pack.default(weight)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(
                torch.ops.livetalk.causal_conv3d_packed.default(
                    x, history, packed, None, 70, (3, 3, 3), 0, (1, 1, 1), (1, 1, 1, 1), method,
                )
            )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results[1:])


def test_wrong_arguments_of_the_compiled_convolution_are_refused() -> None:
    call = torch.ops.livetalk.causal_conv3d_packed.default
    x, weight = random(1, 16, 2, 4, 4, layout=LAYOUTS[1]), random(16, 16, 3, 3, 3)
    packed = torch.ops.livetalk.causal_conv3d_pack.default(weight)

    def run(x: Tensor, packed: Tensor, taps: tuple[int, ...], zeros: int, method: str) -> None:
        call(x, None, packed, None, 16, taps, zeros, (1, 1, 1), (1, 1, 1, 1), method)

    run(x, packed, (3, 3, 3), 2, "direct")
    for wrong in (
        (x.contiguous(), packed, (3, 3, 3), 2, "direct"),
        (x.bfloat16(), packed, (3, 3, 3), 2, "direct"),
        (x, packed[1:], (3, 3, 3), 2, "direct"),
        (x, packed, (1, 3, 3), 0, "direct"),
        (x, packed, (3, 3, 3), 0, "direct"),
        (x, packed, (3, 3, 3), 3, "direct"),
        (x, packed[: 3 * 16 * 32], (3, 1, 1), 2, "winograd"),
        (x, packed, (3, 3, 3), 2, "tiles"),
        (x, packed, (3, 3, 3), 2, "other"),
    ):
        with pytest.raises(RuntimeError):
            run(*wrong)


@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (0, 1, 1, 0)])
@pytest.mark.parametrize("channels", [(8, 8), (3, 8), (8, 3), (32, 32)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frames_are_copied_once_at_most(
    channels: tuple[int, int], padding: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    """Every frame with its border, counted from what the copying operators write."""
    inputs, outputs = channels
    x = random(1, inputs, 4, 8, 8, layout=LAYOUTS[1]).to(dtype)
    history = random(1, inputs, 2, 8, 8, layout=LAYOUTS[1]).to(dtype)
    weight = random(outputs, inputs, 3, 3, 3, layout=LAYOUTS[1]).to(dtype)
    run = load_backend("causal_conv3d", "library").run
    with CountCopies() as copies:
        run(x, history, weight, None, padding=padding)
    padded = 1 if padding == (1, 1, 1, 1) else 81 / 64
    folded = 2 if inputs == 3 else 1  # 4 of the 6 frames, three times
    assert copies.elements <= folded * padded * (x.numel() + history.numel())
    with CountCopies() as copies:
        run(x, None, weight, None, padding=(1, 1, 1, 1))
    assert copies.elements == 0 or inputs == 3


class CountCopies(TorchDispatchMode):
    """Counts the elements of frames (tensors of 8 rows or more) that are copied or zeroed."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        if name == "_to_copy" and out.dtype != args[0].dtype:
            return out  # arithmetic: a CPU without bf16 products multiplies as fp32
        if name in {"cat", "copy_", "clone", "constant_pad_nd", "zero_", "_to_copy"}:
            sums = out.ndim == 5 and out.shape[1] == 9  # of three few outputs, not frames
            weights = out.shape[-1] == 3
            self.elements += 0 if sums or weights else out.numel()
        return out


@pytest.mark.parametrize("backend", runnable("rms_norm_silu", torch.float32))
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_keeps_the_memory_format(
    backend: str, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    x = random(1, 24, 3, 5, 4).to(dtype).contiguous(memory_format=layout)
    y = rms_norm_silu(x, random(24, seed=1).to(dtype), backend=backend)
    assert y.dtype == dtype and y.stride() == x.stride()


@pytest.mark.parametrize("backend", runnable("rms_norm_silu", torch.float32))
def test_norm_of_tiny_and_zero_pixels(backend: str) -> None:
    """The length of a pixel is bounded by 1e-12 from below: no NaN, no blow-up."""
    x = torch.zeros(1, 4, 1, 1, 3).contiguous(memory_format=torch.channels_last_3d)
    x[0, 0, 0, 0, 1] = 1e-13
    x[0, 0, 0, 0, 2] = 1e-3
    y = rms_norm_silu(x, torch.ones(4), backend=backend)
    expected = functional.silu(torch.tensor([0.0, 0.1 * 2, 2.0]))
    torch.testing.assert_close(y[0, 0, 0, 0], expected)
    assert not y[0, 1:].any()
