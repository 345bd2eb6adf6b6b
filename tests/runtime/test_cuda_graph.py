"""Static buffers and captures, with an engine that calls again; and real graphs on a GPU."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from livetalk_kernels.errors import UserError
from livetalk_kernels.runtime.cuda_graph import CudaEngine, GraphedFunction
from livetalk_kernels.testing.graphs import RerunEngine


@dataclass(frozen=True, kw_only=True)
class Inner:
    x: Tensor
    name: str


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Counting:
    """Notes what a function is called with."""

    def __init__(self, function: Callable) -> None:
        self.function, self.calls, self.seen = function, 0, []

    def __call__(self, varying, constant):
        self.calls += 1
        self.seen.append(varying)
        return self.function(varying, constant)


def graphed(function: Callable, **options) -> tuple[GraphedFunction, RerunEngine]:
    engine = RerunEngine()
    return GraphedFunction(function, engine, name="toy", **options), engine


def affine(x: Tensor, y: Tensor) -> Tensor:
    return 3 * x + y


def test_new_inputs_reach_the_buffers():
    graph, engine = graphed(affine)
    y = torch.randn(4)
    for _ in range(3):
        x = torch.randn(4)
        assert torch.equal(graph(x, y), affine(x, y))
    assert (engine.captures, engine.replays) == (1, 3)


def test_the_function_sees_the_same_memory_every_time():
    function = Counting(affine)
    graph, _ = graphed(function)
    y = torch.randn(4)
    outputs = [graph(torch.randn(4), y) for _ in range(3)]
    assert len({x.data_ptr() for x in function.seen}) == 1
    assert outputs[0] is outputs[1] is outputs[2]  # overwritten, as said


def test_nested_arguments_and_results():
    def function(varying, constant):
        pair, items, inner = varying
        assert isinstance(pair, Pair) and isinstance(inner, Inner) and inner.name == "a"
        total = pair.first * pair.second + items["list"][0] + inner.x + constant[0].x
        return {"total": total, "more": (total + 1, None)}

    graph, engine = graphed(function)
    constant = (Inner(x=torch.randn(3), name="c"), "text", None)
    for _ in range(2):
        a, b, c, d = torch.randn(4, 3)
        varying = (Pair(a, b), {"list": [c], "flag": True}, Inner(x=d, name="a"))
        result, expected = graph(varying, constant), function(varying, constant)
        assert torch.equal(result["total"], expected["total"])
        assert torch.equal(result["more"][0], expected["more"][0]) and result["more"][1] is None
    assert engine.captures == 1


def copies(graph: GraphedFunction, x: Tensor, y: Tensor, monkeypatch) -> int:
    """How many copies a call makes before its replay, the result's own not counted."""
    made, copy = [], Tensor.copy_
    monkeypatch.setattr(Tensor, "copy_", lambda *args: (made.append(1), copy(*args))[1])
    graph(x, y)
    monkeypatch.undo()
    return len(made) - 1


def test_the_same_version_is_not_copied_again(monkeypatch):
    graph, engine = graphed(affine)
    x, y = torch.randn(4), torch.randn(4)
    graph(x, y)
    assert copies(graph, x, y, monkeypatch) == 0
    x += 1
    assert copies(graph, x, y, monkeypatch) == 1
    assert torch.equal(graph(x, y), affine(x, y))
    assert copies(graph, x.clone(), y, monkeypatch) == 1
    assert copies(graph, x, y, monkeypatch) == 1  # another was there meanwhile
    assert engine.captures == 1


def test_tensors_without_a_version_are_always_copied(monkeypatch):
    graph, _ = graphed(affine)
    with torch.inference_mode():
        x, y = torch.randn(4), torch.randn(4)
        graph(x, y)
        x += 1
        assert torch.equal(graph(x, y), affine(x, y))
        assert copies(graph, x, y, monkeypatch) == 1
    z = torch.randn(4)
    assert torch.equal(graph(z, y), affine(z, y))  # outside inference mode as well
    assert not graph(z, y).is_inference()


def test_an_address_used_again_is_another_tensor():
    graph, _ = graphed(affine)
    y = torch.zeros(1000)
    for value in range(20):
        x = torch.full((1000,), float(value))
        assert torch.equal(graph(x, y), affine(x, y))
        del x


def test_other_constants_are_captured_anew():
    graph, engine = graphed(lambda x, constant: x * constant[0] + constant[1])
    x, a, b = torch.randn(4), torch.randn(4), torch.randn(4)
    for constant in ((a, 1.0), (a, 1.0), (b, 1.0), (b, 2.0)):
        assert torch.equal(graph(x, constant), x * constant[0] + constant[1])
    assert engine.captures == 3
    a.zero_()  # constants are read where they are
    graph, engine = graphed(affine)
    graph(x, a)
    a.fill_(5)
    assert torch.equal(graph(x, a), affine(x, a)) and engine.captures == 1


@pytest.mark.parametrize(
    "others",
    [
        lambda x: x[:2].clone(),
        lambda x: x.double(),
        lambda x: x.t().contiguous().t(),
        lambda x: x.expand(1, *x.shape),
        lambda x: x.repeat(1, 2)[:, ::2],
    ],
    ids=["shape", "dtype", "stride", "rank", "step"],
)
def test_other_signatures_alternate(others):
    graph, engine = graphed(lambda x, _: x * 2)
    for _ in range(3):
        x = torch.randn(4, 4)
        y = others(torch.randn(4, 4))
        assert torch.equal(graph(x, None), x * 2)
        result = graph(y, None)
        assert torch.equal(result, y * 2) and result.stride() == (y * 2).stride()
    assert engine.captures == 2


def test_the_number_of_graphs_is_bounded():
    graph, engine = graphed(lambda x, _: x + 1, limit=2)
    for size in (1, 2, 1, 3, 1, 2):  # 3 displaces 2, which displaces 3
        x = torch.randn(size)
        assert torch.equal(graph(x, None), x + 1)
    assert engine.captures == 4
    graph.clear()
    graph(torch.randn(2), None)
    assert engine.captures == 5


def test_layout_is_kept():
    """Strided views, views of one storage, and a slice that moves within its storage."""
    function = Counting(lambda varying, _: (varying[0] + varying[1], varying[2] * 2))
    graph, engine = graphed(function)
    for index in range(3):
        both, many = torch.randn(5, 2, 3), torch.randn(2, 4, 6)
        k, v = both.unbind(1)
        varying = (k, v, many[:, index])
        total, double = graph(varying, None)
        assert torch.equal(total, k + v) and torch.equal(double, many[:, index] * 2)
    assert engine.captures == 1
    static_k, static_v, static_slice = function.seen[-1]
    assert static_k.stride() == k.stride() and static_slice.stride() == many[:, 0].stride()
    assert static_v.data_ptr() - static_k.data_ptr() == 3 * k.element_size()
    assert static_k.untyped_storage().nbytes() == both.nbytes


def test_two_that_are_one_tensor_differ_from_two_that_are_not():
    graph, engine = graphed(lambda pair, _: pair[0] - pair[1])
    x, y = torch.randn(4), torch.randn(4)
    assert torch.equal(graph((x, x), None), x - x)
    assert torch.equal(graph((x, y), None), x - y)
    assert torch.equal(graph((y, y), None), y - y)
    assert engine.captures == 2


def test_strides_that_are_never_stepped_do_not_count():
    graph, engine = graphed(lambda x, _: x + 1)
    for stride in (6, 12, 1):
        x = torch.randn(6).as_strided((1, 2, 3), (stride, 3, 1))
        assert torch.equal(graph(x, None), x + 1)
    assert engine.captures == 1


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_empty_and_scalar_tensors(shape):
    graph, engine = graphed(lambda pair, _: (pair[0] + 1, pair[1] * 2))
    for _ in range(2):
        x, y = torch.randn(shape), torch.randn(shape)
        more, double = graph((x, y), None)
        assert torch.equal(more, x + 1) and torch.equal(double, y * 2)
    assert engine.captures == 1


def accumulate(varying, _):
    x, state = varying
    state["sum"].add_(x)
    return state["sum"] * 1, state


def test_state_that_stays_in_the_buffers():
    graph, engine = graphed(accumulate, in_place=True)
    given = torch.randn(3)
    start = given.clone()
    for begin in (given, given, torch.randn(3)):  # the same object again: it must be copied again
        state, expected = {"sum": begin}, begin.clone()
        for _ in range(3):
            x = torch.randn(3)
            total, state = graph((x, state), None)
            expected = expected + x
            assert torch.equal(total, expected) and torch.equal(state["sum"], expected)
    assert torch.equal(given, start)
    assert engine.captures == 1


class Refusing(RerunEngine):
    def capture(self, call):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")


def test_what_cannot_be_captured_says_so():
    graph = GraphedFunction(affine, Refusing(), name="DiT step")
    with pytest.raises(UserError, match=r"^DiT step: .*not permitted\); leave out --cuda-graphs$"):
        graph(torch.randn(3), torch.randn(3))


def test_errors_of_the_function_are_its_own():
    def refuse(_, constant):
        raise UserError("wrong size")

    graph, _ = graphed(refuse)
    with pytest.raises(UserError, match=r"^wrong size$"):
        graph(torch.randn(3), None)


class FakeStream:
    def __init__(self, device: torch.device | None = None) -> None:
        self.device, self.waited_for = torch.device("cuda", 0), list[FakeStream]()

    def wait_stream(self, other: "FakeStream") -> None:
        self.waited_for.append(other)


@pytest.fixture
def current(monkeypatch) -> list[FakeStream]:
    """The current stream, as the last element: torch's own contexts over a driver that is none."""
    streams = [FakeStream()]
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "Stream", FakeStream)
    monkeypatch.setattr(cuda, "current_stream", lambda device=None: streams[-1])
    monkeypatch.setattr(cuda, "set_stream", streams.append)
    monkeypatch.setattr(cuda, "_get_device_index", lambda device, optional: 0)
    for module, name in ((cuda, "synchronize"), (cuda, "empty_cache")):
        monkeypatch.setattr(module, name, lambda *_: None)
    monkeypatch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
    return streams


@pytest.mark.parametrize("failing", ["capture_begin", "call", "capture_end", None])
def test_the_stream_is_the_same_after_a_capture(failing, current, monkeypatch):
    """Where torch's own context leaves its stream behind: ``capture_begin`` and ``capture_end``."""
    before = current[-1]
    events = []

    def step(name: str) -> None:
        events.append((name, current[-1]))
        if name == failing:
            raise RuntimeError(f"{name} failed")

    class FakeGraph:
        capture_begin = lambda *_, **__: step("capture_begin")  # noqa: E731
        capture_end = lambda _: step("capture_end")  # noqa: E731
        replay = None

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    engine = CudaEngine(before.device)
    outcome = contextlib.nullcontext() if failing is None else pytest.raises(RuntimeError)
    with outcome:
        engine.capture(lambda: step("call"))
    assert current[-1] is before
    assert events and all(stream is not before for _, stream in events)


def test_a_failed_warm_up_is_waited_for(current):
    before = current[-1]

    def fail() -> None:
        assert current[-1] is not before
        raise ValueError("wrong size")

    with pytest.raises(ValueError, match="wrong size"):
        CudaEngine(before.device).warm_up(fail)
    assert current[-1] is before and len(before.waited_for) == 1


# On a GPU --------------------------------------------------------------------------------


def product(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y).relu() @ y


@pytest.mark.gpu
@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_replays_equal_eager_calls_gpu(dtype, inference):
    device = torch.device("cuda")
    engine = CudaEngine(device)
    graph = GraphedFunction(product, engine, name="product")
    other = GraphedFunction(lambda x, _: x.square().sum(0), engine, name="squares")
    with torch.inference_mode(inference), torch.no_grad():
        y = torch.randn(64, 64, device=device, dtype=dtype)
        for rows in (48, 16, 48, 16):  # two graphs of one function and one of another, one pool
            x = torch.randn(rows, 64, device=device, dtype=dtype)
            result, squares = graph(x, y), other(x, None)
            assert torch.equal(result, product(x, y))
            assert torch.equal(squares, x.square().sum(0))


@pytest.mark.gpu
def test_pool_after_all_graphs_are_gone_gpu():
    device = torch.device("cuda")
    graph = GraphedFunction(product, CudaEngine(device), name="product", limit=1)
    y = torch.randn(64, 64, device=device)
    for rows in (8, 16, 8):
        x = torch.randn(rows, 64, device=device)
        kept = graph(x, y)
        assert torch.equal(kept, product(x, y))
    graph.clear()
    assert torch.equal(graph(x, y), product(x, y))


@pytest.mark.gpu
def test_state_stays_in_the_buffers_gpu():
    device = torch.device("cuda")
    graph = GraphedFunction(accumulate, CudaEngine(device), name="sum", in_place=True)
    for _ in range(2):
        expected = torch.randn(3, device=device)
        state = {"sum": expected}
        for _ in range(3):
            x = torch.randn(3, device=device)
            total, state = graph((x, state), None)
            expected = expected + x
            assert torch.equal(total, expected)


@pytest.mark.gpu
def test_waiting_for_the_gpu_cannot_be_captured_gpu():
    device = torch.device("cuda")
    graph = GraphedFunction(lambda x, _: x * x.sum().item(), CudaEngine(device), name="sum")
    before = torch.cuda.current_stream(device)
    with pytest.raises(UserError, match="sum: cannot be captured"):
        graph(torch.randn(3, device=device), None)
    assert torch.cuda.current_stream(device) == before
    again = GraphedFunction(affine, CudaEngine(device), name="affine")
    x, y = torch.randn(2, 3, device=device)
    assert torch.equal(again(x, y), affine(x, y))
