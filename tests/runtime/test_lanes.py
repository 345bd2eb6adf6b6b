"""Lanes: order, errors, threads that end, and the same numbers wherever work runs."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from livetalk_kernels.runtime.lanes import (
    InlineLane,
    Lane,
    StreamLane,
    ThreadLane,
    held_tensors,
    open_lane,
)

CPU = torch.device("cpu")
KINDS = [
    "inline",
    "thread",
    pytest.param("stream", marks=pytest.mark.gpu),
]


@pytest.fixture(params=KINDS)
def lane(request) -> Iterator[Lane]:
    if request.param == "stream" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    kinds = {"inline": InlineLane, "thread": ThreadLane}
    made = kinds[request.param]() if request.param in kinds else StreamLane(torch.device("cuda"))
    yield made
    made.close()


def layers(x: torch.Tensor) -> torch.Tensor:
    """Sums whose order depends on how many threads torch uses."""
    for _ in range(4):
        x = torch.nn.functional.gelu(x @ x.T) / 100
    return x.sum(dim=1)


def test_the_numbers_are_the_same(lane):
    where = torch.device("cuda" if isinstance(lane, StreamLane) else "cpu")
    x = torch.randn(257, 129, generator=torch.Generator().manual_seed(0)).to(where)
    expected = layers(x)
    handles = [lane.submit(lambda: layers(x), x) for _ in range(5)]
    busy = layers(x)  # at the same time
    assert torch.equal(busy, expected)
    for handle in handles:
        assert torch.equal(handle.result(), expected)


def test_work_is_done_in_order_and_without_gradients(lane):
    done: list[int] = []
    weight = torch.ones(3, requires_grad=True)
    handles = [lane.submit(lambda index=index: done.append(index)) for index in range(20)]
    last = lane.submit(lambda: weight * 2)
    assert not last.result().requires_grad
    for handle in handles:
        handle.result()
    assert done == list(range(20))


def test_an_error_comes_back_and_the_lane_continues(lane):
    def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        lane.submit(fail).result()
    assert lane.submit(lambda: 7).result() == 7


def test_a_thread_works_concurrently_with_as_many_threads_and_ends():
    before = threading.active_count()
    lane, go = ThreadLane(), threading.Event()
    first = lane.submit(lambda: (go.wait(10), torch.get_num_threads()))
    second = lane.submit(lambda: 1 / 0)
    go.set()
    assert first.result() == (True, torch.get_num_threads())
    lane.close()
    lane.close()
    assert threading.active_count() == before
    with pytest.raises(ZeroDivisionError):
        second.result()
    with pytest.raises(AssertionError, match="closed"):
        lane.submit(lambda: 0)


def test_closing_waits_for_what_runs_and_drops_the_rest():
    lane, started, done = ThreadLane(), threading.Event(), []

    def work() -> None:
        started.set()
        time.sleep(0.05)
        done.append(1)

    lane.submit(work)
    lane.submit(lambda: done.append(2))
    assert started.wait(10)
    lane.close()
    assert done == [1]


def test_a_cpu_works_inline():
    lane = open_lane(CPU)
    assert isinstance(lane, InlineLane) and not lane.concurrent and lane.name == "main"


def test_tensors_of_a_cpu_need_no_stream():
    assert not list(held_tensors([torch.ones(2), {"x": (torch.ones(1),)}]))


def test_tensors_are_found_in_objects_that_refer_to_each_other():
    class Cache:
        def __init__(self) -> None:
            self.frames, self.itself = {"x": [torch.ones(2)]}, self

    assert not list(held_tensors(Cache()))  # none is on a GPU; and it came to an end
