"""Kernels run on the device of their tensors, and fp32 is multiplied as fp32; by fake GPUs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from livetalk_kernels import bind_ops
from livetalk_kernels.backends import triton_launch
from livetalk_kernels.bench.runner import make_inputs
from livetalk_kernels.errors import UserError
from livetalk_kernels.ops.causal_conv3d import reference
from livetalk_kernels.precision import full_fp32
from livetalk_kernels.registry import backend_names, load_backend, load_op, op_names
from livetalk_kernels.spec import Arguments, Case
from livetalk_model import dit, linear
from livetalk_model.cli.main import main
from livetalk_model.config import AudioEncoderConfig, get_preset
from livetalk_model.encoders import audio
from livetalk_model.encoders.audio import AudioEncoder
from livetalk_model.loading import use_device

SECOND = torch.device("cuda", 1)
TRITON = [
    (op, name)
    for op in op_names()
    for name in backend_names(op)
    if load_backend(op, name).launches is not None
]


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of current devices, the present one last; torch.cuda switches it."""
    devices = [0]

    @contextmanager
    def device(index: int) -> Iterator[None]:
        devices.append(index)
        yield
        devices.pop()

    monkeypatch.setattr(torch.cuda, "current_device", lambda: devices[-1])
    monkeypatch.setattr(torch.cuda, "device", device)
    return devices


def on_fake_gpu(case: Case) -> Arguments:
    """Arguments of a call without memory, which say that they are on the second GPU."""

    def fake(x: object) -> object:
        return on_second(x) if isinstance(x, torch.Tensor) else x

    positional, keywords = make_inputs(replace(case, device=torch.device("meta")))
    return tuple(map(fake, positional)), {name: fake(x) for name, x in keywords.items()}


def case_of(op: str, dtype: torch.dtype) -> Case:
    """The small case with the most work: some have nothing to launch."""
    small = [case for case in load_op(op).cases(SECOND, dtype) if not case.large]
    return max(small, key=lambda case: load_op(op).cost(case).flops)


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")  # that descriptors hold
@pytest.mark.parametrize(("op", "backend"), TRITON)
def test_every_launch_is_on_the_tensors_device(op, backend, current, monkeypatch):
    launched: list[int] = []
    monkeypatch.setattr(triton_launch.Launch, "__call__", lambda self: launched.append(current[-1]))
    monkeypatch.setattr(triton_launch, "register_python", lambda op, backend, run, fake: run)
    properties = type("", (), {"multi_processor_count": 132})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    package = __import__(f"livetalk_kernels.ops.{op}", fromlist=["empty_outputs"])
    launches = load_backend(op, backend).launches
    run = triton_launch.register(op, package.empty_outputs, launches, backend=backend)
    with FakeTensorMode(), Moves():
        positional, keywords = on_fake_gpu(case_of(op, torch.bfloat16))
        run(*positional, **keywords)
    assert launched and set(launched) == {SECOND.index}
    assert current == [0]


def switches() -> tuple[str, str]:
    """How convolutions and matrix products in fp32 are multiplied."""
    return torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision


class Moves(TorchFunctionMode):
    """Moves tensors to the GPU, and indexes them there, without asking CUDA for its devices."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.to and SECOND in args:
            return on_second(args[0])
        if function is torch.Tensor.__getitem__:
            x, index = args
            return on_second(torch.empty_strided(x.shape, x.stride(), device="meta")[index], x)
        return function(*args, **(kwargs or {}))


def on_second(shaped: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    dtype = (shaped if like is None else like).dtype
    return torch.empty_strided(shaped.shape, shaped.stride(), dtype=dtype, device=SECOND)


class Recorder(TorchFunctionMode):
    """Notes the switches at every convolution and linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[str, str]]] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        if name.startswith("conv") or name == "linear":
            self.seen.append((name, switches()))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def user(request) -> Iterator[tuple[str, str]]:
    """The switches as PyTorch has them, or as a user who wants TF32 sets them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(getattr(request, "param", "highest"))
    yield switches()
    torch.set_float32_matmul_precision(before)


def fp32_on_a_gpu() -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(1, device=SECOND)


@pytest.mark.parametrize("user", ["highest", "high"], indirect=True)
def test_fp32_is_multiplied_as_fp32_and_the_users_switches_stay(user, monkeypatch):
    """Everything runs on the CPU, and takes what it multiplies for tensors of a GPU."""
    assert user[0] == "tf32"  # PyTorch's default
    monkeypatch.setattr(linear, "prefers_onednn", lambda: False)
    x = fp32_on_a_gpu()
    for module in (reference, audio, dit):
        monkeypatch.setattr(module, "full_fp32", lambda _: full_fp32(x))
    config = AudioEncoderConfig(width=32, layers=1, heads=2, ffn_dim=32)
    encoder = AudioEncoder.random(config, seed=0, device="cpu")
    case = Case(op="causal_conv3d", device=torch.device("cpu"), dtype=torch.float32)
    case = next(c for c in load_op(case.op).cases(case.device, case.dtype) if c.name == "odd")
    positional, keywords = make_inputs(case)
    config = get_preset("tiny").dit
    published = dit.DiT(config, bind_ops(device="cpu", dtype=torch.float32), reuse=False)
    with Recorder() as recorder:
        reference.run(*positional, **keywords)
        encoder.embed(np.random.default_rng(0).normal(0, 0.1, 16000))
        condition = torch.zeros(1, config.in_dim - config.out_dim, 1, 8, 8)
        published.prepare_condition(condition)
    assert switches() == user
    assert torch.get_float32_matmul_precision() == ("high" if user[1] == "tf32" else "highest")
    assert {name for name, _ in recorder.seen} == {"conv3d", "conv1d", "linear"}
    assert not [entry for entry in recorder.seen if "tf32" in entry[1]]


def test_cudnn_searches_where_it_is_named_and_never_takes_tf32(monkeypatch):
    """Its results, with PyTorch's own convolution in cuDNN's place, are the reference's."""
    asked: list[dict[str, bool]] = []

    def stand_in(x, weight, padding, stride, dilation, groups, **flags):
        asked.append(flags)
        convolve = torch.conv2d if x.dim() == 4 else torch.conv3d
        return convolve(x, weight, None, stride, padding, dilation, groups)

    monkeypatch.setattr(torch, "cudnn_convolution", stand_in)
    backend = load_backend("causal_conv3d", "cudnn")
    device = torch.device("cpu")
    for case in load_op("causal_conv3d").cases(device, torch.float32):
        if case.name in ("channels_last", "zero_front", "odd", "time_down", "up"):
            positional, keywords = make_inputs(case)
            found = backend.run(*positional, **keywords)
            torch.testing.assert_close(found, reference.run(*positional, **keywords))
            assert "cuda" in (backend.supports(case) or "")
    wanted = {"benchmark": True, "deterministic": True, "allow_tf32": False}
    assert asked and all(flags == wanted for flags in asked)
    preference = load_op("causal_conv3d").preference
    assert not any("cudnn" in names for names in preference.values())  # a flag, off


def test_the_last_thread_restores_the_switches(user):
    x = fp32_on_a_gpu()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with full_fp32(x):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with full_fp32(x):
        thread.start()
        assert entered.wait(10)
    assert "tf32" not in switches()
    leave.set()
    thread.join()
    assert switches() == user
    with full_fp32(torch.zeros(1)):  # on a CPU there is nothing to switch
        assert switches() == user


def test_a_commands_device_is_the_current_one(monkeypatch):
    """What looks at no tensor, such as a library's own kernels, runs there too."""
    made_current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", made_current.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert use_device("cuda:1") == SECOND and made_current == [SECOND]
    with pytest.raises(UserError, match="cuda:2"):
        use_device("cuda:2")
    assert [use_device(name).type for name in ("cuda", "cpu")] == ["cuda", "cpu"]
    made_current.clear()
    main(["backends", "--device", "cuda:1", "--json"])
    assert made_current == [SECOND]
